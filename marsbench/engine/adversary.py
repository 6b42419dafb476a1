"""Random small cells made to break an engine: scarce KV, odd sizes, ties, compaction, wild policies.

A case is a function of its seed. Cores that play the same case must do the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from marsbench.core import Session, SharedPrefix, Turn, to_ps
from marsbench.engine.base import EngineConfig
from marsbench.engine.cost import LinkCost
from marsbench.engine.parity import FixedScript, scripts
from marsbench.events import Event
from marsbench.scheduler.base import EngineView, Key, Retain, RetainedView, TurnView
from marsbench.system import Policies

MAX_MODEL_LEN = 60_000
UNTIL_PS = to_ps(60.0)
"""Cases are cut here: some policies preempt each other's turns for ever, in any engine."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Case:
    """One cell to play on two cores."""

    seed: int
    config: EngineConfig
    sessions: list[FixedScript]
    policy_seed: int
    with_order: bool
    with_retention: bool
    link: LinkCost | None = None
    """How fast copies to and from host memory are, if there is any; they may be slower than computing."""

    def policies(self) -> Policies:
        """New policy objects, which decide in the same way every time."""
        policies = Policies()
        if self.with_order:
            policies.scheduling = WildOrder(self.policy_seed)
        if self.with_retention:
            policies.retention = WildRetention(self.policy_seed)
        return policies


def make_case(seed: int, *, policies: bool = False, tier: bool = False) -> Case:
    """The case of a seed; without ``policies`` the engine's own order; with ``tier`` host memory."""
    rng = np.random.default_rng(seed)
    sessions = scripts(_sessions(rng))
    if rng.random() < 0.5:
        sessions = [_shaken(script, rng) for script in sessions]
    config = _config(rng, sessions)
    which = int(rng.integers(3)) if policies else -1
    link = None
    if tier:
        config, link = _with_tier(np.random.default_rng((seed, 2)), config)
    return Case(
        seed,
        config,
        sessions,
        policy_seed=int(rng.integers(1 << 30)),
        with_order=which in (0, 2),
        with_retention=which in (1, 2),
        link=link,
    )


def _with_tier(rng: np.random.Generator, config: EngineConfig) -> tuple[EngineConfig, LinkCost]:
    """Host memory from less than one context to more than there is, on links fast and slow."""
    per_chunk = _pick(rng, (1, 1, 2, 3, 4, 16))
    share = _pick(rng, (0.3, 0.7, 1.0, 1.5, 3.0, 10.0))
    token_ps = _pick(rng, (200_000, 2_000_000, 20_000_000, 200_000_000))
    tiered = dataclasses.replace(
        config,
        enable_prefix_caching=True,
        host_chunks=max(1, int(config.num_blocks * share / per_chunk)),
        blocks_per_chunk=per_chunk,
        eviction_policy=_pick(rng, ("lru", "arc")),
        store_threshold=_pick(rng, (0, 0, 0, 2, 3)),
    )
    slower = _pick(rng, (1, 1, 5))
    return tiered, LinkCost(token_ps, token_ps * slower, _pick(rng, (1, 20_000_000)))


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _sessions(rng: np.random.Generator) -> list[Session]:
    num_sessions = int(rng.integers(2, 15))
    prefix_tokens = _pick(rng, (0, 0, 37, 100, 512))
    largest_input, largest_output = _pick(rng, (40, 300, 3000)), _pick(rng, (3, 40, 200))
    made: list[Session] = []
    for number in range(num_sessions):
        turns: list[Turn] = []
        for index in range(int(rng.integers(1, 6))):
            limit = largest_input if index == 0 else max(2, largest_input // 3)
            turns.append(
                Turn(
                    new_input_tokens=int(rng.integers(1, limit)),
                    output_tokens=int(rng.integers(1, largest_output)),
                    resent_output=_pick(rng, (1.0, 1.0, 0.5)),
                    drop_context_to=200 if index and rng.random() < 0.1 else None,
                    think_s=_pick(rng, (0.0, 0.01, 0.5, 3.0)),
                )
            )
        prefix = SharedPrefix(f"p{number % 2}", prefix_tokens) if prefix_tokens else None
        arrival_s = float(rng.random()) * num_sessions * 0.3
        made.append(Session(f"s{number}", tuple(turns), arrival_s=arrival_s, shared_prefix=prefix))
    return made


def _shaken(script: FixedScript, rng: np.random.Generator) -> FixedScript:
    return FixedScript(
        0 if rng.random() < 0.5 else script.arrival_ps,
        script.turns,
        script.gaps_ps,
        script.prefix_id,
        script.prefix_tokens,
        int(rng.integers(4)),
    )


def _config(rng: np.random.Generator, sessions: Sequence[FixedScript]) -> EngineConfig:
    block_size = _pick(rng, (16, 16, 32))
    largest = max(p.prompt_tokens + p.output_tokens for s in sessions for p in s.turns)
    batched = _pick(rng, (8, 64, 256, 2048, 8192))
    return EngineConfig(
        num_blocks=int(-(-largest // block_size) * _pick(rng, (1.0, 1.1, 1.5, 2.0, 4.0, 20.0))),
        block_size=block_size,
        max_model_len=MAX_MODEL_LEN,
        max_num_batched_tokens=batched,
        max_num_seqs=min(batched, _pick(rng, (2, 4, 64, 256))),
        long_prefill_token_threshold=_pick(rng, (0, 0, 16, 512)),
        long_prefill_token_threshold_adaptive=bool(rng.random() < 0.4),
        policy=_pick(rng, ("fcfs", "priority")),
        enable_prefix_caching=bool(rng.random() < 0.9),
        scheduler_reserve_full_isl=bool(rng.random() < 0.85),
    )


class WildOrder:
    """A scheduling policy whose rules are drawn from a seed; the same seed gives the same rules."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.reorders_running = bool(rng.random() < 0.5)
        self.resort_s = _pick(rng, (0.0, 0.05, math.inf))
        self.told: list[tuple[int, int, int, int | None, int]] = []
        """What every call of ``on_scheduled`` said, in order."""
        self._quantum = _pick(rng, (None, 16, 100, 512, 7))
        self._skips = bool(rng.random() < 0.5)
        self._shrinks = bool(rng.random() < 0.5)
        self._waiting, self._running, self._victim = (int(rng.integers(n)) for n in (5, 3, 4))

    def on_event(self, event: Event) -> None:
        """The policy learns nothing from events."""

    def waiting_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        if self._waiting == 0:
            return (0.0 if turn.num_preemptions else 1.0, float(turn.sequence))
        if self._waiting == 1:
            return (float(turn.prompt_tokens - view.cached_tokens(turn)),)
        return (
            (turn.session_arrival_s,),
            (float(-turn.turn_index),),
            (float(len(view.running) % 2) * turn.session,),
        )[self._waiting - 2]

    def running_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        return (
            (turn.session_arrival_s,),
            (float(turn.prompt_tokens),),
            (float(turn.generated_tokens > 0), float(turn.num_blocks)),
        )[self._running]

    def prefill_quantum(self, turn: TurnView, view: EngineView, now_s: float) -> int | None:
        return self._quantum

    def on_scheduled(
        self, turn: TurnView, new_tokens: int, quantum: int | None, now_s: float
    ) -> None:
        self.told.append((turn.session, turn.turn_index, new_tokens, quantum, turn.computed_tokens))

    def victim_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        return (
            (),
            (float(turn.num_blocks),),
            (-float(turn.computed_tokens),),
            (turn.session_arrival_s,),
        )[self._victim]

    def skip_blocked(self) -> bool:
        return self._skips

    def shrink_chunks(self) -> bool:
        return self._shrinks


class WildRetention:
    """A retention policy whose rules are drawn from a seed; the same seed gives the same rules."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng((seed, 1))
        self.max_share = _pick(rng, (0.1, 0.3, 1.0))
        self.review_s = _pick(rng, (0.0, 0.1, math.inf))
        self._ttl_s = _pick(rng, (0.02, 1.0, math.inf))
        self._spares = bool(rng.random() < 0.5)
        self._reviews = bool(rng.random() < 0.4)
        self._percent = float(rng.random()) * 100
        self._reclaim, self._yields = int(rng.integers(3)), int(rng.integers(4))

    def on_event(self, event: Event) -> None:
        """The policy learns nothing from events."""

    def on_turn_end(
        self,
        turn: TurnView,
        tool_names: Sequence[str],
        is_last: bool,
        view: EngineView,
        now_s: float,
    ) -> Retain | None:
        drawn = (turn.session * 7919 + turn.turn_index * 104_729) % 100
        return Retain(now_s + self._ttl_s) if drawn < self._percent else None

    def review(
        self, retained: Sequence[RetainedView], view: EngineView, now_s: float
    ) -> Sequence[RetainedView]:
        scarce = view.free_blocks + view.pinned_blocks < view.num_blocks * 0.4
        return retained[:1] if self._reviews and scarce else ()

    def reclaim_key(self, retained: RetainedView, view: EngineView, now_s: float) -> Key:
        return (
            (float(retained.num_blocks),),
            (retained.since_s,),
            (-float(retained.context_tokens),),
        )[self._reclaim]

    def yields_to(
        self, retained: RetainedView, turn: TurnView, view: EngineView, now_s: float
    ) -> bool:
        return (
            True,
            turn.session_arrival_s < retained.since_s,
            retained.num_blocks % 2 == 0,
            False,
        )[self._yields]

    def spares_returned(self) -> bool:
        return self._spares

"""One of several engines: its core, what the front door knows of it, and what it reports."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from marsbench.admission.base import SessionView
from marsbench.core import HostView
from marsbench.engine.base import ReplicaCore, Request, StoredChunks, TurnKey
from marsbench.engine.life import SessionState
from marsbench.errors import PolicyError
from marsbench.scheduler.base import TurnView

if TYPE_CHECKING:
    from marsbench.engine.fleet import Fleet


class Replica:
    """A replica as routers see it (``routing.base.RoutableReplica``), and where the fleet has it."""

    replicas: Sequence[Replica] = ()
    host: HostView | None = None
    """Replicas with host memory are not modelled."""

    def __init__(self, fleet: Fleet, index: int) -> None:
        self._fleet = fleet
        self.index = index
        self.alive = True
        self.core: ReplicaCore
        self.clock_ps = 0
        """Where its next step begins; in the past of the fleet while it is quiet or idle."""
        self.version = 0
        self.busy = False
        self.bound: dict[int, SessionState] = {}
        """Unfinished sessions whose last turn was sent here."""
        self.prefixes: set[int] = set()
        """Shared prefixes of turns that were sent here."""
        self.prefilling: dict[int, int] = {}
        """Session -> prompt tokens to compute, of turns without a first token."""
        self.in_flight = 0
        self.prefill_tokens = 0
        self.context_tokens = 0
        self.block_size = 0
        self.num_blocks = 0

    def join(self, core: ReplicaCore) -> None:
        """Take the core that reports to this replica."""
        self.core = core
        self.block_size = core.view.block_size
        self.num_blocks = core.view.num_blocks

    # --- what the front door counts ----------------------------------------------------------

    def sent(self, request: Request, new_tokens: int) -> None:
        """Count a turn that was sent to this replica."""
        self.in_flight += 1
        self.context_tokens += request.prompt_tokens
        self.prefill_tokens += new_tokens
        self.prefilling[request.session] = new_tokens
        self.prefixes.add(request.prefix_id)

    def began(self, request: Request) -> None:
        """Note the first token of a turn: its prefill is no work any more."""
        self.prefill_tokens -= self.prefilling.pop(request.session, 0)

    def answered(self, request: Request) -> None:
        """Note the last token of a turn, which is at this replica no more."""
        self.began(request)
        self.in_flight -= 1
        self.context_tokens -= request.prompt_tokens

    def sample(self) -> tuple[int, ...]:
        """Return the payload of a REPLICA_STATS event."""
        view, stats = self.core.view, self.core.stats
        return (
            self.index,
            view.free_blocks,
            len(view.running),
            len(view.waiting),
            stats.busy_ps,
            stats.steps,
        )

    @property
    def sessions(self) -> int:
        """Unfinished sessions whose last turn was sent here."""
        return len(self.bound)

    @property
    def active(self) -> Sequence[SessionState]:
        """These sessions."""
        return list(self.bound.values())

    # --- what the engine tells ---------------------------------------------------------------

    @property
    def free_blocks(self) -> int:
        """Unreferenced blocks."""
        self._fleet.synchronise(self)
        return self.core.view.free_blocks

    @property
    def pinned_blocks(self) -> int:
        """Blocks held by retention."""
        self._fleet.synchronise(self)
        return self.core.view.pinned_blocks

    @property
    def num_running(self) -> int:
        """Turns running."""
        self._fleet.synchronise(self)
        return len(self.core.view.running)

    @property
    def num_waiting(self) -> int:
        """Turns waiting."""
        self._fleet.synchronise(self)
        return len(self.core.view.waiting)

    def cached_tokens(self, turn: SessionView) -> int:
        """Return the prefix hit, tokens, that the turn being routed would have here."""
        return self._fleet.cached_tokens(turn.session, self)

    # --- what all replicas share -------------------------------------------------------------

    @property
    def tool_cores(self) -> int:
        """Of the pool that all replicas' sessions share."""
        return self._fleet.telemetry.tool_cores

    @property
    def tools_running(self) -> int:
        """Calls that run in it."""
        return self._fleet.telemetry.tools_running

    @property
    def tools_queued(self) -> int:
        """Calls that wait for a slot of it."""
        return self._fleet.telemetry.tools_queued

    @property
    def prefix_cache_hit_rate(self) -> float:
        """Of the last turns of all replicas."""
        return self._fleet.telemetry.prefix_cache_hit_rate


class CombinedView:
    """All living replicas as one engine (``scheduler.base.EngineView``)."""

    host: HostView | None = None
    """Replicas with host memory are not modelled."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    @property
    def block_size(self) -> int:
        """Replicas are alike."""
        return self._fleet.replicas[0].block_size

    @property
    def num_blocks(self) -> int:
        """Of all."""
        return sum(replica.num_blocks for replica in self._fleet.live)

    @property
    def free_blocks(self) -> int:
        """Of all."""
        return sum(replica.free_blocks for replica in self._fleet.live)

    @property
    def pinned_blocks(self) -> int:
        """Of all."""
        return sum(replica.pinned_blocks for replica in self._fleet.live)

    @property
    def waiting(self) -> list[TurnView]:
        """Of all, by replica."""
        self._fleet.synchronise_all()
        return [turn for replica in self._fleet.live for turn in replica.core.view.waiting]

    @property
    def running(self) -> list[TurnView]:
        """Of all, by replica."""
        self._fleet.synchronise_all()
        return [turn for replica in self._fleet.live for turn in replica.core.view.running]

    def cached_tokens(self, turn: TurnView) -> int:
        """Raise PolicyError: prefixes lie in one replica each, and admission stands in front of
        all.
        """
        raise PolicyError(
            "cached_tokens was asked of several replicas at once; a router asks it of each"
        )


class Reports:
    """Takes what one replica's core reports (``engine.base.CoreListener``) to the fleet."""

    def __init__(self, fleet: Fleet, replica: Replica) -> None:
        self._fleet = fleet
        self._replica = replica

    def on_scheduled_first(self, request: Request, at_ps: int, cached: int, uncached: int) -> None:
        fleet = self._fleet
        fleet.report(at_ps, partial(fleet.scheduled_first, request, at_ps, cached, uncached))

    def on_preempted(self, request: Request, at_ps: int, lost_tokens: int, blocks: int) -> None:
        fleet = self._fleet
        fleet.report(at_ps, partial(fleet.life.on_preempted, request, at_ps, lost_tokens, blocks))

    def on_resumed(self, request: Request, at_ps: int, cached: int, uncached: int) -> None:
        fleet = self._fleet
        fleet.report(at_ps, partial(fleet.life.on_resumed, request, at_ps, cached, uncached))

    def on_first_token(self, request: Request, at_ps: int) -> None:
        fleet = self._fleet
        fleet.report(at_ps, partial(fleet.first_token, self._replica, request, at_ps))

    def on_finished(
        self, request: Request, at_ps: int, *, prefilled: int, recomputed: int, cached: int
    ) -> None:
        fleet = self._fleet
        fleet.report(
            at_ps,
            partial(fleet.finished, self._replica, request, at_ps, prefilled, recomputed, cached),
        )

    def on_pin(self, session: int, turn_index: int, at_ps: int, blocks: int, until_ps: int) -> None:
        life = self._fleet.life
        self._fleet.report(
            at_ps, partial(life.on_pin, session, turn_index, at_ps, blocks, until_ps)
        )

    def on_unpin(
        self, session: int, turn_index: int, at_ps: int, blocks: int, reason: int, held_ps: int
    ) -> None:
        fleet = self._fleet
        now_ps = fleet.told_from_ps  # a core that is idle has not heard how late it is
        if at_ps < now_ps:
            held_ps += now_ps - at_ps
            at_ps = now_ps
        fleet.report(
            at_ps, partial(fleet.life.on_unpin, session, turn_index, at_ps, blocks, reason, held_ps)
        )

    def on_load(self, turn: TurnKey, at_ps: int, local_tokens: int, loaded_tokens: int) -> None:
        raise AssertionError("replicas with host memory are not modelled")

    def on_loaded(self, turn: TurnKey, at_ps: int, chunks: int, waited_ps: int) -> None:
        raise AssertionError("replicas with host memory are not modelled")

    def on_store(self, turn: TurnKey, at_ps: int, stored: StoredChunks) -> None:
        raise AssertionError("replicas with host memory are not modelled")

    def on_stored(self, turn: TurnKey, at_ps: int, chunks: int) -> None:
        raise AssertionError("replicas with host memory are not modelled")

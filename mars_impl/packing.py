"""Packing: which sessions' working sets are in memory together, and who enters next.

Paper: "pressure-aware queue packing" of the external control plane. Packing by projected growth,
suspension of the youngest at a turn boundary, lending, and the order of entry are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from mars_impl.lending import Lending
from mars_impl.params import MarsParams
from mars_impl.stream import SessionInfo, StreamState
from marsbench.admission.base import SessionView

STARVATION_S = 600.0
"""A session that has waited longer goes by its age (or three times what sessions like it take, if
that is longer); half and twice are worth 0.1 % over all cells."""


@dataclass(slots=True)
class Memory:
    """Tokens of KV: what there is, what residents need, what others still use for a turn."""

    capacity: float
    resident: float
    borrowed: float = 0.0

    def fits(self, tokens: float) -> bool:
        """Tell whether there is room for so many more tokens."""
        return self.resident + self.borrowed + tokens <= self.capacity


class Candidate(NamedTuple):
    """A pending turn that might enter; sorts by ``key``."""

    key: tuple[float, float, float]
    view: SessionView
    info: SessionInfo

    @property
    def starves(self) -> bool:
        """It has waited too long."""
        return self.key[0] == STARVES


STARVES, WAITS, LATE = 0.0, 1.0, 2.0
_by_key = attrgetter("key")
_by_rank = attrgetter("rank", "session")


class Packing:
    """Residents stay in order of rank; places go to whoever is expected to be done soonest and in time."""

    def __init__(
        self,
        params: MarsParams,
        state: StreamState,
        lending: Lending,
        *,
        block_size: int,
        host_share: float = 0.0,
    ) -> None:
        """``host_share`` is host memory for KV as a share of the GPU's; 0 = there is none.

        A session whose KV comes back over the link needs no place on the GPU while its tools run, so
        host memory makes places too. But places that are all taken are turns that compete for the
        same prefill and decode speed, so there are at most ``host_places`` GPUs' worth of them.
        """
        self._params = params
        self._share = params.kv_target + min(params.host_places, host_share)
        self._state = state
        self._lending = lending
        self._block_size = block_size

    def need(self, info: SessionInfo, turns: float) -> float:
        """Return the tokens of KV that a session is expected to hold ``turns`` turns from now."""
        if turns > 1.0:  # whoever is unfinished is expected to have at least one more
            left = self._state.classes.remaining_turns(info.first_prompt, info.turns)
            turns = min(turns, left)
        return self._private(info) + self._state.growth.mean * turns

    def _private(self, info: SessionInfo) -> int:
        """Tokens of KV of its own. Before its turn runs, as many are others' as of its class usually."""
        if info.phase != "ready":
            return info.private
        usual = self._state.classes.shared(info.first_prompt, info.turns)
        return max(info.context - max(info.shared, usual), 0)

    # --- who stays ---------------------------------------------------------------------------

    def suspend(self, num_blocks: int, now_s: float) -> Memory:
        """Walk the residents by rank and suspend those whose working set no longer fits.

        The highest rank always stays. Whoever lends its memory loses its place at once, others at
        the end of their turn: the next one waits at the gate, and their KV goes first in eviction.
        """
        state = self._state
        memory = Memory(
            self._share * num_blocks * self._block_size,
            float(state.shared_resident),
        )
        limited, headroom = bool(self._params.kv_signal), self._params.headroom_turns
        first = True
        members = [info for info in state.residents.values() if info.top is info]
        members += [info for info in state.sub_agents.values() if info.top.resident]
        for info in sorted(members, key=_by_rank):
            root = info.top
            if not root.resident:
                continue  # its root was suspended in this walk
            if info.phase == "tool" and not info.children and self._lending.pays(info, now_s):
                state.unseat(info)
                continue
            need = self.need(info, headroom)
            if first or info is not root or not limited or memory.fits(need):
                memory.resident += need
                first = False
            else:
                state.unseat(root)
        memory.borrowed = sum(
            [float(info.private) for info in state.in_engine.values() if not info.top.resident]
        )
        return memory

    # --- who enters --------------------------------------------------------------------------

    def enter(
        self,
        candidates: Sequence[SessionView],
        memory: Memory,
        now_s: float,
        *,
        places: float,
        flip: bool,
    ) -> list[SessionView]:
        """Return the suspended and new sessions that fit beside the residents with room to grow.

        ``places`` limits the new ones. Who starves goes first, and until it fits nobody passes it.
        """
        chosen: list[SessionView] = []
        if not candidates:
            return chosen
        alone = not self._state.residents
        if not any(self._may_enter(c, memory, places, alone=alone) for c in candidates):
            return chosen  # whatever their order: nobody leaves while others enter
        for candidate in self.by_time_left(candidates, now_s, flip=flip):
            info = candidate.info
            root = info.top
            fresh = math.isinf(info.rank)
            if fresh and places < 1 and not alone:
                continue
            need = self.need(info, self._params.entry_turns)
            if info is not root:  # a sub-agent, and its root is out (or entered just now)
                need += 0.0 if root.resident else self.need(root, self._params.headroom_turns)
            free = not self._params.kv_signal or alone or (info is not root and root.resident)
            if not free and not memory.fits(need):
                if candidate.starves:
                    break
                continue
            chosen.append(candidate.view)
            memory.resident += need
            places -= fresh
            self._state.seat(root)
            alone = False
        return chosen

    def _may_enter(
        self, candidate: SessionView, memory: Memory, places: float, *, alone: bool
    ) -> bool:
        """Whether it could be let in if it came first (a sub-agent perhaps after its root)."""
        info = self._state.sessions[candidate.session]
        if alone or info is not info.top:
            return True
        if places < 1 and math.isinf(info.rank):
            return False
        if not self._params.kv_signal:
            return True
        need = self.need(info, self._params.entry_turns)
        return memory.fits(self._private(info)) and memory.fits(need)

    def by_time_left(
        self, candidates: Sequence[SessionView], now_s: float, *, flip: bool = False
    ) -> list[Candidate]:
        """Order candidates by the shortest expected time to the end: those first that can still end
        within the objective, then the others. Whoever waited too long goes before all, by age.
        """
        sign = -1.0 if flip else 1.0
        sessions, classes = self._state.sessions, self._state.classes
        ordered = []
        for view in candidates:
            info = sessions[view.session]
            root = info.top
            arrival_s = view.arrival_s
            since_s = arrival_s if math.isinf(info.rank) else info.since_s
            patience_s = max(STARVATION_S, 3.0 * classes.active_s(root.first_prompt))
            if now_s - since_s > patience_s:
                key = (STARVES, since_s, 0.0)
            else:
                left_s = classes.left_s(root.first_prompt, root.turns)
                late = self._late(root, left_s, now_s)
                key = (LATE if late else WAITS, sign * left_s, arrival_s)
            ordered.append(Candidate(key, view, info))
        ordered.sort(key=_by_key)
        return ordered

    def _late(self, root: SessionInfo, left_s: float, now_s: float) -> bool:
        """Whether it is expected to end beyond the objective: so many times what it takes alone.

        What it takes alone is what it has taken so far, less waits, and the usual rest of its class.
        """
        alone_s = root.alone_s + self._state.classes.alone_left_s(root.first_prompt, root.turns)
        return 0.0 < self._params.slo * alone_s < now_s - root.arrival_s + left_s

"""Packing: which sessions' working sets are in memory together, and who enters next.

Paper: "pressure-aware queue packing" of the external control plane. Packing by projected growth,
suspension of the youngest at a turn boundary, lending, and the order of entry are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mars_impl.lending import Lending
from mars_impl.params import MarsParams
from mars_impl.stream import SessionInfo, StreamState
from marsbench.admission.base import SessionView, SystemView


@dataclass(slots=True)
class Memory:
    """Tokens of KV: what there is, what residents need, what others still use for a turn."""

    capacity: float
    resident: float
    borrowed: float = 0.0

    def fits(self, tokens: float) -> bool:
        """Whether so much more does."""
        return self.resident + self.borrowed + tokens <= self.capacity


class Packing:
    """Residents stay in order of rank; places go to whoever is expected to be done soonest."""

    def __init__(
        self, params: MarsParams, state: StreamState, lending: Lending, *, block_size: int
    ) -> None:
        self._params = params
        self._state = state
        self._lending = lending
        self._block_size = block_size

    def need(self, info: SessionInfo, turns: float) -> float:
        """Tokens of KV a session is expected to hold ``turns`` turns from now."""
        left = self._state.classes.remaining_turns(info.first_prompt, info.turns)
        return info.private + self._state.growth.mean * min(turns, left)

    def _root(self, info: SessionInfo) -> SessionInfo:
        return self._state.sessions.get(info.root, info)

    def is_resident(self, info: SessionInfo) -> bool:
        """A sub-agent is when its root is, which cannot go on without it."""
        return self._root(info).resident

    # --- who stays ---------------------------------------------------------------------------

    def suspend(self, num_blocks: int, now_s: float) -> Memory:
        """Walk the residents by rank and suspend those whose working set no longer fits.

        The highest rank always stays. Whoever lends its memory loses its place at once, others at
        the end of their turn: the next one waits at the gate, and their KV goes first in eviction.
        """
        sessions = self._state.sessions
        memory = Memory(
            self._params.kv_target * num_blocks * self._block_size,
            float(self._state.shared_resident),
        )
        parents = {info.root for info in sessions.values() if info.root != info.session}
        first = True
        for info in sorted(
            (info for info in sessions.values() if self.is_resident(info)),
            key=lambda info: (info.rank, info.session),
        ):
            root = self._root(info)
            if not root.resident:
                continue  # its root was suspended in this walk
            if info.session not in parents and self._lending.pays(info, now_s):
                info.resident = False
                continue
            need = self.need(info, self._params.headroom_turns)
            kept = first or info is not root or not self._params.kv_signal
            if kept or memory.fits(need):
                memory.resident += need
                first = False
            else:
                root.resident = False
        memory.borrowed = sum(
            float(info.private)
            for info in sessions.values()
            if info.phase == "engine" and not self.is_resident(info)
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
        """Suspended and new sessions that fit beside the residents with room to grow.

        ``places`` limits the new ones. Who starves goes first, and until it fits nobody passes it.
        """
        chosen: list[SessionView] = []
        alone = not any(info.resident for info in self._state.sessions.values())
        for candidate in self.by_time_left(candidates, now_s, flip=flip):
            info = self._state.sessions[candidate.session]
            root = self._root(info)
            fresh = math.isinf(info.rank)
            if fresh and places < 1 and not alone:
                continue
            need = self.need(info, self._params.entry_turns)
            if info is not root:  # a sub-agent, and its root is out (or entered just now)
                need += 0.0 if root.resident else self.need(root, self._params.headroom_turns)
            free = not self._params.kv_signal or alone or (info is not root and root.resident)
            if not free and not memory.fits(need):
                if self._starves(candidate, now_s):
                    break
                continue
            chosen.append(candidate)
            memory.resident += need
            places -= fresh
            root.resident = True
            alone = False
        return chosen

    def by_time_left(
        self, candidates: Sequence[SessionView], now_s: float, *, flip: bool = False
    ) -> list[SessionView]:
        """Shortest expected time to the end first; whoever waited too long goes by age."""
        sign = -1.0 if flip else 1.0

        def key(candidate: SessionView) -> tuple[float, float, float]:
            if self._starves(candidate, now_s):
                return (0.0, self._waits_since_s(candidate), 0.0)
            return (1.0, sign * self._left_s(candidate), candidate.arrival_s)

        return sorted(candidates, key=key)

    def _left_s(self, candidate: SessionView) -> float:
        root = self._root(self._state.sessions[candidate.session])
        return self._state.classes.left_s(root.first_prompt, root.turns)

    def _waits_since_s(self, candidate: SessionView) -> float:
        info = self._state.sessions[candidate.session]
        return candidate.arrival_s if math.isinf(info.rank) else info.since_s

    def _starves(self, candidate: SessionView, now_s: float) -> bool:
        root = self._root(self._state.sessions[candidate.session])
        expected_s = self._state.classes.active_s(root.first_prompt)
        bound_s = max(self._params.starvation_s, 3.0 * expected_s)
        return now_s - self._waits_since_s(candidate) > bound_s

    def opportunity(
        self, candidates: Sequence[SessionView], view: SystemView, now_s: float
    ) -> list[SessionView]:
        """While residents wait for their tools and leave the engine idle, one other turn may run.

        It gets only blocks that nobody runs on or has pinned, so residents lose nothing they keep.
        """
        if self._state.busy > self._params.busy_high:
            return []
        if view.num_running + view.num_waiting >= self._params.opportunity:
            return []
        free = view.free_blocks * self._block_size
        states = self._state.sessions
        for candidate in sorted(
            self.by_time_left(candidates, now_s), key=lambda c: states[c.session].rank
        ):
            if states[candidate.session].private + self._state.growth.mean <= free:
                return [candidate]
        return []

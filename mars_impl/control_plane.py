"""The external control plane: which sessions are active, and which tool calls run.

Paper: "external control plane" - pressure-aware queue packing, CPU- and KV-aware admission limits,
AIMD adaptation, ordering decoupled from admission. Flags and window follow the public
preview; packing by *projected growth*, the starvation bound and the
event-driven form are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mars_impl.params import MarsParams
from mars_impl.stream import SessionInfo, StreamState
from marsbench.admission.base import SessionView, SystemView, ToolCallView


class Pressure:
    """A flag with hysteresis."""

    def __init__(self) -> None:
        self.on = False

    def update(self, *, high: bool, low: bool) -> bool:
        """Turn on when ``high``, off when ``low``; in between keep."""
        if high:
            self.on = True
        elif low:
            self.on = False
        return self.on


class ControlPlane:
    """Admission and tool dispatch of MARS."""

    def __init__(self, params: MarsParams, state: StreamState, *, block_size: int) -> None:
        self.params = params
        self.state = state
        self.cpu = Pressure()
        self.kv = Pressure()
        self.window = math.inf
        """AIMD limit on active sessions; infinite until pressure is first seen."""
        self._block_size = block_size
        self._adapted_s = -math.inf

    # --- admission -------------------------------------------------------------------------

    def admit(
        self, pending: Sequence[SessionView], view: SystemView, now_s: float
    ) -> Sequence[SessionView]:
        """The pending sessions that enter now, best first."""
        if not self.params.control_plane:
            return pending
        tops = sum(
            1
            for info in self.state.sessions.values()
            if info.root == info.session and not math.isinf(info.rank)
        )
        self._adapt(view, now_s, tops)
        resident, used = self._resident(view)
        waiting = [c for c in pending if not math.isinf(self.state.sessions[c.session].rank)]
        chosen: list[SessionView] = sorted(
            (c for c in waiting if c.session in resident),
            key=lambda c: self.state.sessions[c.session].rank,
        )
        suspended = [c for c in waiting if c.session not in resident]
        fresh = [c for c in pending if math.isinf(self.state.sessions[c.session].rank)]
        if not suspended:
            chosen += self._newcomers(fresh, view, now_s, tops=tops, used=used)
        if not chosen:
            chosen = self._opportunity(suspended, fresh, view, now_s)
        return chosen

    def _opportunity(
        self,
        suspended: Sequence[SessionView],
        fresh: Sequence[SessionView],
        view: SystemView,
        now_s: float,
    ) -> list[SessionView]:
        """While residents wait for their tools and leave the engine idle, one other turn may run.

        It gets only blocks that nobody runs on or has pinned, so residents lose nothing they keep.
        """
        if self.state.busy > self.params.busy_high:
            return []
        if view.num_running + view.num_waiting >= self.params.opportunity:
            return []
        free = view.free_blocks * self._block_size
        ranked = sorted(suspended, key=lambda c: self.state.sessions[c.session].rank)
        for candidate in (*ranked, *self._order(fresh, now_s)):
            info = self.state.sessions[candidate.session]
            if info.private + self.state.growth.mean <= free:
                return [candidate]
        return []

    def _need(self, info: SessionInfo, turns: float) -> float:
        """Tokens of KV a session is expected to hold ``turns`` turns from now."""
        left = self.state.classes.remaining_turns(info.first_prompt, info.turns)
        return info.private + self.state.growth.mean * min(turns, left)

    def _resident(self, view: SystemView) -> tuple[set[int], float]:
        """Sessions whose working sets fit together, in order of rank, and the tokens they need.

        The others are suspended: their next turn waits at the gate, and their KV, lowest in rank,
        is what eviction takes first. The highest rank is always resident, and a sub-agent is
        when its root is, which cannot go on without it.
        """
        capacity = self.params.kv_target * view.num_blocks * self._block_size
        used = float(self.state.shared_resident)
        resident: set[int] = set()
        ranked = sorted(
            (info for info in self.state.sessions.values() if not math.isinf(info.rank)),
            key=lambda info: (info.rank, info.session),
        )
        for info in ranked:
            need = self._need(info, self.params.headroom_turns)
            fits = used + need <= capacity or not self.params.kv_signal
            if fits or not resident or info.root in resident:
                resident.add(info.session)
                used += need
        return resident, used

    def _newcomers(
        self,
        fresh: Sequence[SessionView],
        view: SystemView,
        now_s: float,
        *,
        tops: int,
        used: float,
    ) -> list[SessionView]:
        """Backlogged sessions that fit beside the resident ones, best first."""
        limit = self._limit(view, tops)
        capacity = self.params.kv_target * view.num_blocks * self._block_size
        chosen: list[SessionView] = []
        for candidate in self._order(fresh, now_s):
            count = tops + len(chosen)
            if count and count >= limit:
                break
            info = self.state.sessions[candidate.session]
            need = self._need(info, self.params.newcomer_turns)
            if count and self.params.kv_signal and used + need > capacity:
                if self._starving(candidate, now_s):
                    break
                continue
            chosen.append(candidate)
            used += need
        return chosen

    def _order(self, pending: Sequence[SessionView], now_s: float) -> list[SessionView]:
        """Shortest expected session first; whoever waited too long goes by arrival."""
        classes = self.state.classes
        flip = -1.0 if self.params.longest_first and self.cpu.on else 1.0

        def key(candidate: SessionView) -> tuple[float, float, float]:
            if self._starving(candidate, now_s):
                return (0.0, candidate.arrival_s, 0.0)
            return (1.0, flip * classes.active_s(candidate.prompt_tokens), candidate.arrival_s)

        return sorted(pending, key=key)

    def _starving(self, candidate: SessionView, now_s: float) -> bool:
        expected = self.state.classes.active_s(candidate.prompt_tokens)
        return now_s - candidate.arrival_s > max(self.params.starvation_s, 3.0 * expected)

    def _limit(self, view: SystemView, tops: int) -> float:
        """Most active sessions the window and the CPU cap allow."""
        if self.params.static_window > 0:
            return self.params.static_window
        return max(self.window, self.params.window_min)

    def _adapt(self, view: SystemView, now_s: float, tops: int) -> None:
        """Flags and AIMD window, at most once a tick."""
        p = self.params
        if now_s - self._adapted_s < p.tick_s:
            return
        self._adapted_s = now_s
        loss = self.state.loss
        self.kv.update(high=loss >= p.loss_high, low=loss <= p.loss_low)
        if view.tool_cores:
            ratio = (view.tools_running + view.tools_queued) / view.tool_cores
            wait = self.state.tool_wait_s
            self.cpu.update(
                high=ratio >= p.cpu_high or wait >= p.cpu_wait_high_s,
                low=ratio <= p.cpu_low and wait <= p.cpu_wait_low_s,
            )
        if self.cpu.on and p.cpu_signal:
            base = min(self.window, float(max(tops, 1)))
            self.window = max(p.window_min, math.floor(base * p.window_decrease))
        else:
            self.window += p.window_increase

    # --- tool slots ------------------------------------------------------------------------

    def slots(self, view: SystemView) -> int | None:
        """Calls that may run at once."""
        if not self.params.cpu_signal or not view.tool_cores:
            return None
        return max(1, math.ceil(self.params.slots_per_core * view.tool_cores))

    def next_call(self, queue: Sequence[ToolCallView], now_s: float) -> int:
        """Short calls first, then those of the session with the highest priority."""
        best = 0
        best_key = (math.inf, math.inf, math.inf)
        for index, call in enumerate(queue):
            expected = self.state.gaps.expected_s(call.name)
            info = self.state.sessions.get(call.session)
            rank = info.rank if info is not None else math.inf
            short = 0.0 if expected <= self.params.short_call_s else 1.0
            key = (short, rank, call.queued_s)
            if key < best_key:
                best, best_key = index, key
        return best

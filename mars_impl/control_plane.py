"""The external control plane: which turns enter the engine, and which tool calls run.

Paper: "external control plane" - pressure-aware queue packing, CPU- and KV-aware admission limits,
AIMD adaptation, ordering decoupled from admission. Flag and window of the CPU side follow the
public preview; the KV side is packing (packing.py); the event-driven form is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mars_impl.packing import Packing
from mars_impl.params import MarsParams
from mars_impl.stream import StreamState
from marsbench.admission.base import (
    MAX_NICE,
    Niceness,
    SessionView,
    SystemView,
    ToolCallView,
)

# Half or twice any of these moves the mean session latency by less than 0.5 % on every workload,
# load and number of tool cores tried (results/reference/mars_sensitivity.csv).
WINDOW_MIN = 2.0
"""Fewest active sessions that the window allows; the preview's value for OpenHands."""
WINDOW_DECREASE = 0.7
"""Under pressure the window shrinks by this factor a tick, as in the preview."""
WINDOW_INCREASE = 1.0
"""Without pressure the window grows by so many sessions a tick, as in the preview."""
CPU_LOW = 2.0
"""Pressure ends at so many tool calls per core, a quarter of the calls at which it begins."""
CPU_BUSY = 0.9
"""Tool cores of which a smaller share is used are not under pressure, however many calls wait."""
CPU_WAIT_LOW_S, CPU_WAIT_HIGH_S = 2.0, 5.0
"""Mean wait for a tool slot at which pressure ends and begins, as in the preview."""
SLOTS_PER_CORE = 16
"""Calls that run at once on a core: enough that slots do not idle while calls wait for I/O."""
SHORT_CALL_S = 0.5
"""Calls expected to be shorter pass the others in the queue for slots."""


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


class MarsControlPlane:
    """Admission and tool dispatch of MARS."""

    def __init__(self, params: MarsParams, state: StreamState, packing: Packing) -> None:
        self.params = params
        self.state = state
        self.packing = packing
        self.cpu = Pressure()
        self.window = math.inf
        """AIMD limit on active sessions; infinite until pressure is first seen."""
        self._adapted_s = -math.inf

    # --- admission -------------------------------------------------------------------------

    def admit(
        self, pending: Sequence[SessionView], view: SystemView, now_s: float
    ) -> Sequence[SessionView]:
        """Return the pending turns that go on now, in order."""
        if not self.params.control_plane:
            return pending
        packing, sessions = self.packing, self.state.sessions
        tops = self.state.num_admitted
        self.adapt(view, now_s, tops)
        memory = packing.suspend(view.num_blocks, now_s)
        chosen: list[SessionView] = []
        others: list[SessionView] = []
        for candidate in pending:
            (chosen if sessions[candidate.session].top.resident else others).append(candidate)
        chosen.sort(key=lambda c: (sessions[c.session].rank, c.session))
        chosen += packing.enter(
            others, memory, now_s,
            places=self.limit() - tops, flip=bool(self.params.longest_first) and self.cpu.on,
        )  # fmt: skip
        return chosen

    def limit(self) -> float:
        """Return the most active sessions that the window allows."""
        if self.params.static_window > 0:
            return self.params.static_window
        return max(self.window, WINDOW_MIN)

    def adapt(self, view: SystemView, now_s: float, tops: int) -> None:
        """Update the flag of the CPU side and the AIMD window, at most once a tick."""
        p = self.params
        if now_s - self._adapted_s < p.tick_s:
            return
        self._adapted_s = now_s
        if view.tool_cores:
            ratio = (view.tools_running + view.tools_queued) / view.tool_cores
            wait = self.state.tool_wait_s
            # Many calls on idle cores wait for something else, and a smaller window would not help.
            computes = not self.state.cores_told or self.state.tool_busy >= CPU_BUSY
            self.cpu.update(
                high=computes and (ratio >= p.cpu_high or wait >= CPU_WAIT_HIGH_S),
                low=not computes or (ratio <= CPU_LOW and wait <= CPU_WAIT_LOW_S),
            )
        if self.cpu.on and p.cpu_signal:
            base = min(self.window, float(max(tops, 1)))
            self.window = max(WINDOW_MIN, math.floor(base * WINDOW_DECREASE))
        else:
            self.window += WINDOW_INCREASE

    # --- tool slots ------------------------------------------------------------------------

    def slots(self, view: SystemView) -> int | None:
        """Return how many calls may run at once; None for no limit."""
        if not self.params.cpu_signal or not view.tool_cores:
            return None
        return SLOTS_PER_CORE * view.tool_cores

    def next_call(self, queue: Sequence[ToolCallView], now_s: float) -> int:
        """Choose a short call first, then one of the session with the highest priority; returns its
        index.
        """
        best = 0
        best_key = (math.inf, math.inf, math.inf)
        for index, call in enumerate(queue):
            expected = self.state.gaps.expected_s(call.name)
            info = self.state.sessions.get(call.session)
            rank = info.rank if info is not None else math.inf
            short = 0.0 if expected <= SHORT_CALL_S else 1.0
            key = (short, rank, call.queued_s)
            if key < best_key:
                best, best_key = index, key
        return best

    def niceness(self, call: ToolCallView, view: SystemView) -> Niceness:
        """Make long calls stand back for sessions in their tools that are expected to end sooner.

        Short calls never do: first CPU seconds are shared equally, so that a listing is not held up
        by a test suite of whichever session.
        """
        info = self.state.sessions.get(call.session)
        p = self.params
        if not p.cpu_signal or not p.nice_step or not view.tool_cores or info is None:
            return Niceness()
        sessions, left_s = self.state.sessions, self.state.classes.left_s
        root = sessions.get(info.root, info)
        own_s = left_s(root.first_prompt, root.turns)
        nice, sooner = 0, 0
        for other in sessions.values():
            if other.phase == "tool" and other.root == other.session:
                sooner += left_s(other.first_prompt, other.turns) < own_s
                nice = int(sooner * p.nice_step)
                if nice >= MAX_NICE:
                    break  # whatever the others are
        return Niceness(min(nice, MAX_NICE), p.nice_after_s)

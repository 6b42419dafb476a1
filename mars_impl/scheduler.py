"""The internal agent-centric scheduler: one priority order for running, preempting and evicting.

Paper: "session-based priority coordinator" (multi-level feedback, continuations first, prefill
chunk shrinking) and "opportunistic co-scheduler" (bounded retention for warm tool returns). Levels,
ageing and chunk shrinking follow the public preview; levels look at *uncached*
tokens, as the paper's text asks and the preview does not. The session rank inside a level is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from mars_impl.control_plane import MarsControlPlane
from mars_impl.estimate import turn_s
from mars_impl.lending import Lending
from mars_impl.packing import Packing
from mars_impl.params import MarsParams
from mars_impl.retention import Retention
from mars_impl.stream import StreamState
from marsbench.admission.base import Niceness, SessionView, SystemView, ToolCallView
from marsbench.core import PolicyContext
from marsbench.events import Event, Kind
from marsbench.scheduler.base import EngineView, Key, Retain, RetainedView, TurnView

GUEST = 1e9
"""Added to the rank of a session without a place in memory."""
SHORT_QUANTUM = 8_192
"""Most tokens a step of the two upper levels, 2048 and 1024 in the preview. It is the usual budget
of a whole step; half or twice as much is worth 0.4 % over all cells."""
LEVEL_STEP = 4
"""How many times as much uncached work the second level holds as the first, 2,048 and 8,192 tokens
in the preview; half and twice the first bound are worth 0.4 % over all cells."""
AGEING_S = 30.0
"""A turn goes up a level in so much time, as in the preview; worth 0.3 % over all cells."""


class Mars:
    """All of MARS behind the suite's policy protocols: one object in every role."""

    gates_continuations = True
    reorders_running = True
    resort_s = 1.0

    def __init__(self, context: PolicyContext, *, admits: bool = False) -> None:
        """``admits``: a control plane before it gives places, although nobody asks this object."""
        params = MarsParams().with_overrides(context.params)
        self.params = params
        self.state = StreamState(
            turn_s=partial(turn_s, context=context),
            tool_cores=context.tool_cores,
        )
        self.lending = Lending(params, self.state, context)
        self.control = MarsControlPlane(
            params,
            self.state,
            Packing(
                params,
                self.state,
                self.lending,
                block_size=context.block_size,
                host_share=context.host_blocks / context.num_blocks,
            ),
        )
        self.keep = Retention(params, self.state, context)
        self.tick_s: float | None = params.tick_s
        # A warm return saves a prefill where KV that leaves the GPU is lost. Where it lies in host
        # memory it saves a transfer, some hundred times less, and a pin's blocks serve others better.
        self._retains = bool(params.retention) and (
            not context.host_blocks or bool(params.host_pins)
        )
        self.max_share = params.pin_share if self._retains else 0.0
        self.review_s = 1.0
        self._admits = admits
        """Asked for admission: False for a Mars inside a server, joined to another at the gate."""
        self._levels = (params.level_2 / LEVEL_STEP, params.level_2, params.level_3)
        self._quanta = tuple(
            int(q) for q in (SHORT_QUANTUM, SHORT_QUANTUM, params.quantum_2, params.quantum_3)
        )

    def on_event(self, event: Event) -> None:
        """Every role lives off the same stream.

        Inside a server the gate is elsewhere: whom it lets in has a place.
        """
        self.state.on_event(event)
        if not self._admits and event.kind == Kind.GPU_SUBMIT:
            info = self.state.sessions.get(event.session)
            if info is not None:
                self.state.seat(info.top)

    # --- control plane ---------------------------------------------------------------------

    def admit(
        self, pending: Sequence[SessionView], view: SystemView, now_s: float
    ) -> Sequence[SessionView]:
        """See MarsControlPlane.admit."""
        self._admits = True
        return self.control.admit(pending, view, now_s)

    def slots(self, view: SystemView, now_s: float) -> int | None:
        """See MarsControlPlane.slots."""
        return self.control.slots(view)

    def next_call(self, queue: Sequence[ToolCallView], view: SystemView, now_s: float) -> int:
        """See MarsControlPlane.next_call."""
        return self.control.next_call(queue, now_s)

    def niceness(self, call: ToolCallView, view: SystemView, now_s: float) -> Niceness:
        """See MarsControlPlane.niceness."""
        return self.control.niceness(call, view)

    # --- order -----------------------------------------------------------------------------

    def rank(self, session: int) -> float:
        """Return the priority of a session, smaller first: residents before others, then order of
        arrival.
        """
        info = self.state.sessions.get(session)
        if info is None:
            return math.inf
        if info.top.resident or not self.params.control_plane:
            return info.rank
        return info.rank + GUEST

    def level(self, uncached_tokens: int) -> int:
        """Return the level of a turn with so much prompt left to compute."""
        for level, bound in enumerate(self._levels):
            if uncached_tokens <= bound:
                return level
        return len(self._levels)

    def waiting_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """Serve by (level of the uncached work, aged; continuations first; rank)."""
        if not self.params.coordinator:
            return (0.0 if turn.num_preemptions else 1.0, float(turn.sequence))
        uncached = turn.prompt_tokens - view.cached_tokens(turn)
        aged = math.floor((now_s - turn.ready_s) / AGEING_S)
        level = max(self.level(uncached) - aged, 0)
        return (float(level), float(turn.turn_index == 0), self.rank(turn.session))

    def running_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """Run decodes first, then prefills by what is left of them, then by rank."""
        if not self.params.coordinator:
            return ()
        left = turn.prompt_tokens - turn.computed_tokens
        if left <= 0:
            return (-1.0, self.rank(turn.session))
        aged = math.floor((now_s - turn.ready_s) / AGEING_S)
        return (float(max(self.level(left) - aged, 0)), self.rank(turn.session))

    def prefill_quantum(self, turn: TurnView, view: EngineView, now_s: float) -> int | None:
        """Return smaller chunks for longer prefills while anyone else is there to be delayed."""
        if not self.params.coordinator or len(view.running) + len(view.waiting) < 2:
            return None
        if not self.params.quanta:
            return self._quanta[-1]
        computed = turn.computed_tokens or view.cached_tokens(turn)
        return self._quanta[self.level(turn.prompt_tokens - computed)]

    def on_scheduled(
        self, turn: TurnView, new_tokens: int, quantum: int | None, now_s: float
    ) -> None:
        """Do nothing: levels follow from what is left, so there is nothing to keep."""

    def victim_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """Preempt prefills before decodes, the lowest priority first."""
        if not self.params.coordinator:
            return ()
        prefill = turn.computed_tokens < turn.prompt_tokens
        return (float(prefill), self.rank(turn.session), float(turn.num_blocks))

    def skip_blocked(self) -> bool:
        """Return whether a turn that waits for memory lets those pass that need none."""
        return bool(self.params.coordinator)

    def shrink_chunks(self) -> bool:
        """Return whether chunks shrink before anyone is preempted."""
        return bool(self.params.coordinator)

    # --- retention -------------------------------------------------------------------------

    def on_turn_end(
        self,
        turn: TurnView,
        tool_names: Sequence[str],
        is_last: bool,
        view: EngineView,
        now_s: float,
    ) -> Retain | None:
        """See Retention.decide."""
        if is_last or not self._retains:
            return None
        return self.keep.decide(turn, tool_names, view, now_s)

    def review(
        self, retained: Sequence[RetainedView], view: EngineView, now_s: float
    ) -> Sequence[RetainedView]:
        """See Retention.review. Inside a server, first find out who has lost its place."""
        if not self._admits and self.params.control_plane:
            self.control.packing.suspend(view.num_blocks, now_s)
        return self.keep.review(retained, view, now_s)

    def reclaim_key(self, retained: RetainedView, view: EngineView, now_s: float) -> Key:
        """Give up the lowest priority first, and among sub-agents of one root the longest
        context.
        """
        return (self.rank(retained.session), float(retained.num_blocks))

    def yields_to(
        self, retained: RetainedView, turn: TurnView, view: EngineView, now_s: float
    ) -> bool:
        """Let a pin yield only to a turn of higher priority: the same order rules memory and
        execution.
        """
        return self.rank(turn.session) < self.rank(retained.session)

    def spares_returned(self) -> bool:
        """Return whether a session that is back and waits keeps its KV."""
        return True

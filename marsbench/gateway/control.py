"""The control plane on a wall clock: a system's policies decide, this keeps the book.

What ``marsbench.engine.driver`` does in virtual time happens here in real time, with the same events
in the same order: a session arrives, its turn is ready, is admitted, submitted, ends; its tools
start and end. Policies are asked after each of those, on their own ticks and after each reading of
the backends, because here memory also changes between events.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from marsbench.admission.base import Unlimited
from marsbench.core import PS_PER_S, to_ps
from marsbench.errors import PolicyError
from marsbench.events import Kind, Status
from marsbench.gateway.bus import EventBus
from marsbench.gateway.problems import ApiProblem
from marsbench.gateway.prompt import Prompt
from marsbench.gateway.sessions import LiveSession, OpenCall, SessionTable
from marsbench.gateway.telemetry import FleetView, ReplicaView, Shared
from marsbench.system import Policies

logger = logging.getLogger(__name__)

Route = Callable[[LiveSession], int]
"""Chooses the backend of a turn: index in the fleet. Raises ApiProblem if none can take it."""

START_BYTES_PER_TOKEN = 4.0
MAX_HEADS = 10_000
"""Shared heads (tools and system messages) remembered."""
RATIO_WEIGHT = 0.2
"""Weight of a new bytes-per-token observation (ThunderAgent's router uses the same)."""


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """How a turn ended, as far as it can be seen from outside the engine."""

    ok: bool
    output_tokens: int = 0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    calls: tuple[OpenCall, ...] = ()
    is_last: bool = False


class ControlPlane:
    """Admission and the life of sessions."""

    def __init__(
        self,
        policies: Policies,
        fleet: FleetView,
        shared: Shared,
        bus: EventBus,
        route: Route,
        *,
        admission_s: float,
    ) -> None:
        self.table = SessionTable()
        self.bus = bus
        self.fleet = fleet
        self.ending: list[Callable[[LiveSession], None]] = []
        """Told before each session's end."""
        self.ended: list[Callable[[LiveSession, Status], None]] = []
        """Told after each session's end."""
        self.overrides = 0
        """Turns let in against a policy that held all of them back while nothing ran."""
        self.inferred_calls = 0
        """Tool calls thought to run because a reply asked for them."""
        self.waits_s: deque[float] = deque(maxlen=1000)
        self._policies = policies
        self._gated = not isinstance(policies.admission, Unlimited)
        self._shared = shared
        self._route = route
        self._admission_s = admission_s
        self._pending: dict[int, tuple[LiveSession, asyncio.Future[None]]] = {}
        self._tick: asyncio.TimerHandle | None = None
        self._heads: OrderedDict[bytes, None] = OrderedDict()
        self._bytes_per_token = START_BYTES_PER_TOKEN

    @property
    def num_pending(self) -> int:
        """Turns that wait for admission."""
        return len(self._pending)

    def estimate_tokens(self, prompt: Prompt, session: LiveSession) -> int:
        """Prompt length before the backend has counted it."""
        if prompt.tokens is not None:
            return prompt.tokens
        ratio = session.bytes_per_token or self._bytes_per_token
        return max(1, round(prompt.num_bytes / ratio))

    # --- a turn ----------------------------------------------------------------------------

    def ready(self, session: LiveSession, prompt: Prompt) -> None:
        """A request of the session has come: its tools are back, its turn could run."""
        tokens = self.estimate_tokens(prompt, session)
        if session.phase == "new":
            self._arrive(session, tokens)
        else:
            self._tools_back(session)
            for child in [c for c in session.children if not c.in_flight]:
                self.end(child, Status.OK)
            session.turn_index = session.turns_sent
        chained = bool(prompt.previous_response) and prompt.previous_response == session.response_id
        continues = chained or (session.mark is not None and prompt.extends(session.mark))
        session.reused_tokens = min(session.context_tokens, tokens) if continues else 0
        session.prompt_tokens = tokens
        if session.turns_sent == 0:
            session.context_tokens = tokens
            session.reused_tokens = self._shared_tokens(prompt, tokens)
        at_ps = self._emit(Kind.TURN_READY, session, (tokens,))
        session.enter("pending", at_ps)

    async def wait(self, session: LiveSession) -> None:
        """Until the policy lets the turn in; it is then counted as sent.

        Raises ApiProblem (503) after the longest wait an operator allows.
        """
        new = not session.admitted and session.parent is None
        if not self._gated or not (new or self._policies.admission.gates_continuations):
            self._submit(session)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending[session.session] = session, future
        try:
            self.ask()
            async with asyncio.timeout(self._admission_s):
                await future
        except TimeoutError:
            raise ApiProblem(
                503,
                f"not admitted within {self._admission_s:g} s; the system is full",
                code="admission_timeout",
                retry_after_s=30,
            ) from None
        finally:
            self._pending.pop(session.session, None)

    def withdraw(self, session: LiveSession) -> None:
        """The request went away before it was sent."""
        self._pending.pop(session.session, None)
        if not session.turns_sent:
            self.end(session, Status.ERROR)
            return
        session.enter("tool", self.bus.clock.now_ps())
        self.ask()

    def first_token(self, session: LiveSession) -> None:
        """The backend's first output: when it was scheduled is not seen from outside."""
        cached = min(session.reused_tokens, session.prompt_tokens)
        self._emit(Kind.GPU_SCHED_FIRST, session, (cached, session.prompt_tokens - cached))
        self._emit(Kind.GPU_FIRST_TOKEN, session)

    def finished(self, session: LiveSession, prompt: Prompt, end: TurnEnd) -> None:
        """The turn has left the backend, well or not."""
        tokens = end.prompt_tokens
        if tokens is None:
            tokens = session.prompt_tokens
        elif prompt.tokens is None and tokens > 0:
            self._learn_ratio(session, prompt, tokens)
        reused = session.reused_tokens
        cached = min(reused if end.cached_tokens is None else end.cached_tokens, tokens)
        recomputed = max(0, min(reused, tokens) - cached) if session.turns_sent > 1 else 0
        if end.ok and prompt.head:
            self._heads[prompt.head_digest] = None
            self._heads.move_to_end(prompt.head_digest)
            if len(self._heads) > MAX_HEADS:
                self._heads.popitem(last=False)
        if end.ok and end.cached_tokens is not None:
            self._shared.hits.append((cached, tokens))
        payload = (
            end.output_tokens,
            cached,
            tokens - cached,
            recomputed,
            len(end.calls),
            int(end.is_last),
        )
        at_ps = self._emit(Kind.GPU_END, session, payload)
        self._replica(session).in_flight -= 1
        session.prompt_tokens = tokens
        session.context_tokens = tokens + end.output_tokens
        session.served_tokens += tokens - cached + end.output_tokens
        session.enter("tool", at_ps)
        if end.is_last:
            self.end(session, Status.OK if end.ok else Status.ERROR)
            return
        self._tools_start(session, end.calls)
        self.ask()

    def moved(self, session: LiveSession, backend: int) -> None:
        """The turn could not be sent where it was routed to and goes elsewhere."""
        self._replica(session).in_flight -= 1
        session.backend = backend
        replica = self._replica(session)
        replica.in_flight += 1
        replica.submitted_blocks += replica.blocks_for(session.prompt_tokens)

    def end(self, session: LiveSession, status: Status) -> None:
        """The session has ended: said by its client, or silent for too long."""
        if session.phase == "done":
            return
        for child in list(session.children):
            if child.in_flight:
                child.parent = None  # its turn goes on by itself
            else:
                self.end(child, status)
        for told in self.ending:
            told(session)
        self._forget_calls(session)
        self._shared.active.pop(session.session, None)
        self.table.remove(session)
        known = session.phase != "new"
        at_ps = self.bus.clock.now_ps()
        if known:
            at_ps = self._emit(Kind.SESSION_END, session, (int(status),), turn=-1)
        session.enter("done", at_ps)
        if known:
            for heard in self.ended:
                heard(session, status)
        self.ask()

    def reap(self, idle_s: float) -> None:
        """End sessions that have been silent for ``idle_s``."""
        latest = self.bus.clock.now_ps() - to_ps(idle_s)
        for session in list(self.table.sessions.values()):
            busy = session.in_flight or session.leases or any(c.in_flight for c in session.children)
            if not busy and session.seen_ps <= latest:
                self.end(session, Status.OK)

    # --- admission -------------------------------------------------------------------------

    def ask(self) -> None:
        """Let the policy choose among pending turns."""
        if not self._pending:
            return
        policy = self._policies.admission
        views = [session for session, _ in self._pending.values()]
        chosen = policy.admit(views, self.fleet, self.bus.clock.now_s())
        for view in list(chosen):
            entry = self._pending.pop(view.session, None)
            if entry is None:
                raise PolicyError(f"admission let session {view.session} in, which is not pending")
            self._let_in(*entry)
        if self._pending and not chosen and self._stuck(policy.tick_s):
            self.overrides += 1
            first = next(iter(self._pending))
            logger.warning("nothing is active and the policy admits nothing; letting one turn in")
            self._let_in(*self._pending.pop(first))
        if self._pending and policy.tick_s is not None and self._tick is None:
            loop = asyncio.get_running_loop()
            self._tick = loop.call_later(max(policy.tick_s, 0.001), self._on_tick)

    def refuse_pending(self, problem: ApiProblem) -> None:
        """End the wait of all turns that are not admitted."""
        for _, future in self._pending.values():
            if not future.done():
                future.set_exception(problem)

    def close(self) -> None:
        """No more ticks."""
        if self._tick is not None:
            self._tick.cancel()

    def _on_tick(self) -> None:
        self._tick = None
        self.ask()

    def _stuck(self, tick_s: float | None) -> bool:
        """Nobody is left who could bring the next event that changes the policy's mind."""
        active = self._shared.active.values()
        if not active:
            return True
        return tick_s is None and all(session.phase == "pending" for session in active)

    def _let_in(self, session: LiveSession, future: asyncio.Future[None]) -> None:
        if future.done():
            return
        try:
            self._submit(session)
        except ApiProblem as problem:
            future.set_exception(problem)
        else:
            future.set_result(None)

    def _submit(self, session: LiveSession) -> None:
        backend = self._route(session)
        now_ps = self.bus.clock.now_ps()
        self.waits_s.append((now_ps - session.phase_since_ps) / PS_PER_S)
        if not session.admitted:
            session.admitted = True
            self._shared.active[session.session] = session
            self._emit(Kind.SESSION_ADMIT, session, (len(self._shared.active),), turn=0)
        session.backend = backend
        session.turns_sent += 1
        replica = self._replica(session)
        blocks = replica.blocks_for(session.prompt_tokens)
        replica.in_flight += 1
        replica.submitted_blocks += blocks
        at_ps = self._emit(Kind.GPU_SUBMIT, session, (session.prompt_tokens, blocks))
        session.enter("engine", at_ps)

    # --- tools whose times are only seen as gaps ---------------------------------------------

    def _tools_start(self, session: LiveSession, calls: tuple[OpenCall, ...]) -> None:
        session.calls = list(calls)
        for call in session.calls:
            self.inferred_calls += 1
            self._emit_call(Kind.TOOL_ENQUEUED, session, call)
            self._emit_call(Kind.TOOL_START, session, call, (0, 0))

    def _tools_back(self, session: LiveSession) -> None:
        for call in list(session.open_calls()):
            if not call.leased:
                self._emit_call(Kind.TOOL_END, session, call, (0, 0))
        self._forget_calls(session)

    def _forget_calls(self, session: LiveSession) -> None:
        self.inferred_calls -= sum(not call.leased for call in session.open_calls())
        session.calls = []

    # --- events ----------------------------------------------------------------------------

    def _arrive(self, session: LiveSession, tokens: int) -> None:
        self.bus.register(session.session, session.session_id)
        parent = -1 if session.parent is None else session.parent.session
        self._emit(Kind.SESSION_ARRIVE, session, (tokens, parent, session.parent_turn), turn=-1)

    def _emit(
        self,
        kind: Kind,
        session: LiveSession,
        payload: tuple[int, ...] = (),
        turn: int | None = None,
    ) -> int:
        index = session.turn_index if turn is None else turn
        return self.bus.emit(
            kind, session.session, index, payload=payload, session_id=session.session_id
        )

    def _emit_call(
        self, kind: Kind, session: LiveSession, call: OpenCall, payload: tuple[int, ...] = ()
    ) -> None:
        self.bus.emit(
            kind,
            session.session,
            session.turn_index,
            call.index,
            payload,
            session_id=session.session_id,
            name=call.name,
            tool_class=call.tool_class,
        )

    def _replica(self, session: LiveSession) -> ReplicaView:
        assert session.backend is not None
        return self.fleet.replicas[session.backend]

    def _shared_tokens(self, prompt: Prompt, tokens: int) -> int:
        """Tokens of tools and system messages, if an engine has had the same ones before."""
        if not prompt.head or prompt.head_digest not in self._heads:
            return 0
        return len(prompt.head) * tokens // prompt.num_bytes

    def _learn_ratio(self, session: LiveSession, prompt: Prompt, tokens: int) -> None:
        ratio = prompt.num_bytes / tokens
        session.bytes_per_token = ratio
        self._bytes_per_token += RATIO_WEIGHT * (ratio - self._bytes_per_token)

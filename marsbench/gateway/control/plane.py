"""The control plane on a wall clock: a system's policies decide, this keeps the book.

The transitions of a session's life and their events are those of every driver
(``marsbench.engine.life``), and policies are asked as in every driver (``marsbench.engine.gate``): after
each transition, on their own ticks and after each reading of the backends, because here memory also
changes between events. What is the gateway's own: requests that wait, sessions that fall silent, and
counts that a backend tells only at the end of a turn.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from marsbench.core import Phase, to_ps, to_s
from marsbench.engine.base import Request
from marsbench.engine.gate import Gate
from marsbench.engine.life import SessionState
from marsbench.events import Status
from marsbench.gateway.control.bus import EventBus
from marsbench.gateway.control.guesses import InferredCalls
from marsbench.gateway.control.lengths import PromptLengths
from marsbench.gateway.control.sessions import LiveSession, OpenCall, SessionTable
from marsbench.gateway.control.views import FleetView, ReplicaView, Shared
from marsbench.gateway.messages.classify import FINAL_CALLS
from marsbench.gateway.messages.prompt import Prompt
from marsbench.gateway.problems import ApiProblem
from marsbench.system import Policies

logger = logging.getLogger(__name__)

Route = Callable[[LiveSession], int]
"""Chooses the backend of a turn: index in the fleet. Raises ApiProblem if none can take it."""


REAP_MOST = 5_000
"""Sessions the reaper looks at in one go: a hundred thousand would hold up every stream."""


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """How a turn ended, as far as it can be seen from outside the engine."""

    ok: bool
    output_tokens: int = 0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    calls: tuple[OpenCall, ...] = ()
    is_last: bool = False


class Plane:
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
        self.guesses = InferredCalls(bus)
        self.lent = 0
        """Places of silent sessions that were given to others, ever."""
        self.waited: list[Callable[[LiveSession, float], None]] = []
        """Told how long each turn waited to be let in, seconds."""
        self._shared = shared
        self._route = route
        self._admission_s = admission_s
        self._life = bus.life
        self._gate = Gate(policies.admission, self._let_in, self._tick_at)
        self._tick_s = policies.admission.tick_s
        self._waiting: dict[int, asyncio.Future[None]] = {}
        """Requests whose turns the gate holds back, by session."""
        self._tick: asyncio.TimerHandle | None = None
        self._overdue: dict[int, LiveSession] = {}
        """Active sessions of whose calls nothing was heard for longer than they ever take."""
        self._lengths = PromptLengths()
        self._unseen: list[LiveSession] = []
        """Sessions that the reaper has still to look at."""

    @property
    def num_pending(self) -> int:
        """Turns that wait for admission."""
        return len(self._gate.pending)

    # --- a turn ----------------------------------------------------------------------------

    def ready(self, session: LiveSession, prompt: Prompt) -> None:
        """Note that a request of the session has come: its tools are back, and its turn could
        run.
        """
        tokens = self._lengths.tokens(prompt, session)
        now_ps = self.bus.clock.now_ps()
        context_tokens = session.state.context_tokens
        if session.phase == Phase.NEW:
            self.bus.register(session.session, session.session_id)
            self._life.arrive(session.state, now_ps, tokens, session.parent_turn)
        else:
            self._come_back(session, tokens)
        if session.turns_sent == 0 and session.past is None:
            session.reused_tokens = self._lengths.shared_tokens(prompt, tokens)
        else:
            session.state.context_tokens = context_tokens
            chained = prompt.previous_response and prompt.previous_response == session.response_id
            continues = chained or (session.mark is not None and prompt.extends(session.mark))
            session.reused_tokens = min(context_tokens, tokens) if continues else 0
        self._life.ready(session.state, now_ps, tokens)

    def _come_back(self, session: LiveSession, tokens: int) -> None:
        """The tools of the session's last turn are back, and its sub-agents are over."""
        self._overdue.pop(session.session, None)
        self.guesses.back(session)
        session.state.prompt_tokens = tokens
        if session.lent:
            session.lent = False
            self.bus.active[session.session] = session.state
            self.bus.take_back(session.state)
        for child in [c for c in session.children if not c.in_flight]:
            self.end(child, Status.OK)
        session.state.turn_index = session.turns_sent

    async def wait(self, session: LiveSession) -> None:
        """Wait until the policy lets the turn in; it is then counted as sent.

        Raises ApiProblem (503) after the longest wait an operator allows.
        """
        if not self._gate.holds(session.state):
            self._submit(session)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[session.session] = future
        self._gate.pending.append(session.state)
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
            self._forget_waiting(session)

    def withdraw(self, session: LiveSession) -> None:
        """Take back a request that went away before it was sent."""
        self._forget_waiting(session)
        if not session.turns_sent:
            self.end(session, Status.ERROR)
            return
        self._life.withdraw(session.state, self.bus.clock.now_ps())
        self.ask()

    def first_token(self, session: LiveSession) -> None:
        """Note the backend's first output. When the turn was scheduled is not seen from outside."""
        assert session.request is not None
        now_ps = self.bus.clock.now_ps()
        cached = min(session.reused_tokens, session.state.prompt_tokens)
        self._life.on_scheduled_first(
            session.request, now_ps, cached, session.state.prompt_tokens - cached
        )
        self._life.on_first_token(session.request, now_ps)

    def finished(self, session: LiveSession, prompt: Prompt, end: TurnEnd) -> None:
        """Note that the turn has left the backend, well or not."""
        tokens = session.state.prompt_tokens if end.prompt_tokens is None else end.prompt_tokens
        if end.prompt_tokens is not None:
            self._lengths.counted(prompt, session, tokens)
        reused = session.reused_tokens
        cached = min(reused if end.cached_tokens is None else end.cached_tokens, tokens)
        recomputed = self._recomputed(session, min(reused, tokens), cached)
        if end.ok:
            self._lengths.answered(prompt)
        if end.ok and end.cached_tokens is not None:
            self._shared.hits.append((cached, tokens))
        request = session.request
        assert request is not None
        request.output_tokens, request.is_last = end.output_tokens, end.is_last
        request.tool_names = tuple(call.name for call in end.calls)
        now_ps, prefilled = self.bus.clock.now_ps(), tokens - cached
        self._life.on_finished(
            request, now_ps, prefilled=prefilled, recomputed=recomputed, cached=cached
        )
        self._life.finished.clear()
        self._replica(session).in_flight -= 1
        session.state.prompt_tokens = tokens
        self._life.returned(
            session.state, now_ps, output_tokens=end.output_tokens, prefilled=prefilled
        )
        if end.is_last:
            self.end(session, Status.OK if end.ok else Status.ERROR)
            return
        self.guesses.start(session, end.calls)
        self.ask()

    def moved(self, session: LiveSession, backend: int) -> None:
        """Note that the turn could not be sent where it was routed to and goes elsewhere."""
        self._replica(session).in_flight -= 1
        self._place(session, backend)
        replica = self._replica(session)
        replica.in_flight += 1
        replica.submitted_blocks += replica.blocks_for(session.state.prompt_tokens)

    def end(self, session: LiveSession, status: Status) -> None:
        """End a session, because its client said so or was silent for too long."""
        if session.phase == Phase.DONE:
            return
        for child in list(session.children):
            if child.in_flight:
                child.orphan()  # its turn goes on by itself
            else:
                self.end(child, status)
        for told in self.ending:
            told(session)
        self.guesses.forget(session)
        self._overdue.pop(session.session, None)
        self.bus.active.pop(session.session, None)
        self._shared.homes.pop(session.session, None)
        self.table.remove(session)
        if session.phase == Phase.NEW:
            session.state.phase = Phase.DONE
            return
        self._life.end(session.state, self.bus.clock.now_ps(), status)
        self.bus.lent.discard(session.session)
        for heard in self.ended:
            heard(session, status)
        self.ask()

    def reap(self, idle_s: float, call_idle_s: float) -> None:
        """End sessions that have been silent for ``idle_s``, or for ``call_idle_s`` if their last
        reply asked for tool calls: a test suite may take longer than a person's patience.
        """
        now_ps = self.bus.clock.now_ps()
        latest, latest_of_calls = now_ps - to_ps(idle_s), now_ps - to_ps(max(call_idle_s, idle_s))
        if not self._unseen:
            self._unseen = list(self.table.sessions.values())
        looked_at, self._unseen = self._unseen[-REAP_MOST:], self._unseen[:-REAP_MOST]
        for session in looked_at:
            if (
                session.phase == Phase.DONE
                or session.seen_ps > latest
                or session.in_flight
                or session.leases
            ):
                continue
            waits = any(session.open_calls()) and session.seen_ps > latest_of_calls
            if not waits and not any(child.in_flight for child in session.children):
                session.silent = True
                lost = any(call.name.lower() not in FINAL_CALLS for call in session.open_calls())
                self.end(session, Status.TIMEOUT if lost else Status.OK)

    # --- admission -------------------------------------------------------------------------

    def ask(self) -> None:
        """Let the policy choose among pending turns."""
        gate = self._gate
        if not gate.pending:
            return
        self._lend()
        before = len(gate.pending)
        gate.ask(self.fleet, self.bus.clock.now_ps())
        if len(gate.pending) == before and self._stuck():
            self.overrides += 1
            logger.warning("nothing is active and the policy admits nothing; letting one turn in")
            self._let_in(gate.pending.pop(0), self.bus.clock.now_ps())

    def look_for_overdue(self) -> None:
        """Stop counting calls that should have been back; the places of their sessions can be lent."""
        for session in self.guesses.give_up(self.bus.clock.now_ps()):
            if session.session in self.bus.active and not session.is_child:
                self._overdue[session.session] = session

    def _lend(self) -> None:
        """Somebody waits: places of sessions that may never come back are theirs. For policies
        such a session has ended; if it does come back, it is let in at once.
        """
        for session in self._overdue.values():
            if not any(child.in_flight for child in session.children):
                session.lent = True
                self.lent += 1
                del self.bus.active[session.session]
                self.bus.lend(session.state)
        self._overdue = {key: s for key, s in self._overdue.items() if not s.lent}

    def refuse_pending(self, problem: ApiProblem) -> None:
        """End the wait of all turns that are not admitted."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(problem)

    def close(self) -> None:
        """Stop the ticks."""
        if self._tick is not None:
            self._tick.cancel()

    def _tick_at(self, at_ps: int) -> None:
        """The policy wants to be asked then, whatever happens."""
        if self._tick is None:
            wait_s = to_s(at_ps - self.bus.clock.now_ps())
            self._tick = asyncio.get_running_loop().call_later(max(wait_s, 0.001), self._on_tick)

    def _on_tick(self) -> None:
        self._tick = None
        self.ask()

    def _stuck(self) -> bool:
        """Nobody is left who could bring the next event that changes the policy's mind."""
        active = self.bus.active.values()
        if not active:
            return True
        return self._tick_s is None and all(session.phase == Phase.PENDING for session in active)

    def _let_in(self, state: SessionState, _at_ps: int) -> None:
        """The gate lets a turn in: its request goes on."""
        session = self.table.sessions[state.session]
        future = self._waiting[session.session]
        if future.done():
            return
        try:
            self._submit(session)
        except ApiProblem as problem:
            future.set_exception(problem)
        else:
            future.set_result(None)

    def _forget_waiting(self, session: LiveSession) -> None:
        self._waiting.pop(session.session, None)
        if session.state in self._gate.pending:
            self._gate.pending.remove(session.state)

    def _submit(self, session: LiveSession) -> None:
        self._place(session, self._route(session))
        now_ps = self.bus.clock.now_ps()
        for told in self.waited:
            told(session, to_s(now_ps - session.state.phase_since_ps))
        session.turns_sent += 1
        session.request = self._request(session, now_ps)
        replica = self._replica(session)
        blocks = replica.blocks_for(session.state.prompt_tokens)
        replica.in_flight += 1
        replica.submitted_blocks += blocks
        self._life.submit(session.state, now_ps, blocks)

    def _place(self, session: LiveSession, backend: int) -> None:
        session.backend = self._shared.homes[session.session] = backend

    def _request(self, session: LiveSession, now_ps: int) -> Request:
        """The turn as engines know one; what its reply will hold is filled in at its end."""
        return Request(
            session=session.session,
            turn_index=session.turn_index,
            prompt_tokens=session.state.prompt_tokens,
            reused_tokens=session.reused_tokens,
            output_tokens=0,
            prefix_id=-1,
            prefix_tokens=0,
            session_arrival_ps=session.state.arrival_ps,
            ready_ps=now_ps,
            priority=0,
            is_last=False,
            tool_names=(),
        )

    def _replica(self, session: LiveSession) -> ReplicaView:
        assert session.backend is not None
        return self.fleet.replicas[session.backend]

    def _recomputed(self, session: LiveSession, reused: int, cached: int) -> int:
        """Prompt tokens computed again although the session had them before.

        An engine reuses whole blocks, and never the last prompt token: what does not fill a block
        could not have been reused and counts as new, as it does in every engine.
        """
        if session.turns_sent < 2 or not reused:
            return 0
        size = self._replica(session).block_size
        return max(0, (reused - 1) // size * size - cached)

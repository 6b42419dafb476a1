"""The policies of one system inside a server: built from what the server was told, hearing what its
requests and the control plane say, and telling the control plane what the engine does.

A scheduler plug-in owns a ``Hosted`` and tells it each step of a turn's life; which server it is in,
a ``Hosted`` does not know.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

from marsbench.core import PS_PER_S, PolicyContext, to_s
from marsbench.engine.link.inside import InsideLink, Sizes
from marsbench.engine.link.roster import Roster
from marsbench.engine.served import ServedOptions
from marsbench.engine.turns import TurnInfo
from marsbench.events import Event, Kind
from marsbench.system import Policies


class Host(Protocol):
    """A scheduler in whose process policies of ours run, as the link sees it."""

    def context(self, base: PolicyContext) -> PolicyContext:
        """Return what the profile says of the deployment, with the engine's own sizes."""
        ...

    def install(self, policies: Policies) -> None:
        """Take these policies, and none of those before; nothing is in the engine."""
        ...

    def session_ended(self, session: int) -> None:
        """Let go of what the engine keeps for a session, since no further turn of it will come."""
        ...

    def idle(self) -> bool:
        """Whether nothing waits and nothing runs in the engine."""
        ...

    def sizes(self) -> Sizes:
        """Return the state of the KV cache and of the queues now."""
        ...


class Hosted:
    """Policies inside a server. Times are the server's own monotonic clock, from its start."""

    def __init__(self, options: ServedOptions, host: Host) -> None:
        """ConfigError if they name a system or a profile that there is not, or that no server can run."""
        self._options = options
        self._host = host
        self._start_s = time.monotonic()
        self.roster = Roster(self.hear, host.session_ended, self.now_ps)
        self.cached: dict[str, int] = {}
        """Prefix hit of each turn in the engine when it was first admitted, by request."""
        self.tokenless: dict[str, TurnInfo] = {}
        """Admitted requests that had no first token yet."""
        self.listeners: list[Any] = []
        self._install()
        self.link = InsideLink(
            listen=options.listen,
            publish=options.publish,
            roster=self.roster,
            now_ps=self.now_ps,
            restarted=self._restarted,
        )

    @property
    def system(self) -> str:
        """Name of the system."""
        return self._options.system

    def _install(self) -> None:
        """Fresh policies."""
        policies = self._options.policies(self._host.context(self._options.context()))
        self.listeners = [policies.scheduling.on_event]
        if policies.retention is not policies.scheduling:  # type: ignore[comparison-overlap]
            self.listeners.append(policies.retention.on_event)
        self._host.install(policies)

    def _restarted(self) -> None:
        """A new run begins: what the policies learned in another one is not theirs to know."""
        if self._host.idle():
            self.roster.clear()
            self._install()

    def now_ps(self) -> int:
        return int((time.monotonic() - self._start_s) * PS_PER_S)

    # ---- a turn's life

    def describe(
        self, key: str, name: str | None, hints: Mapping[str, Any], prompt_tokens: int
    ) -> TurnInfo:
        """Return what a request says of its session. A request that names none is a session of one
        turn.
        """
        if name is None and hints.get("marsbench_session") is not None:
            name = str(hints["marsbench_session"])
        tools = tuple(str(tool) for tool in hints.get("marsbench_tools", ()))
        given = hints.get("marsbench_turn")
        known, turn_index = self.roster.submitted(
            key if name is None else name, prompt_tokens, None if given is None else int(given)
        )
        is_last = name is None or bool(int(hints.get("marsbench_last", 0)))
        now_s = to_s(self.now_ps())
        return TurnInfo(known.index, turn_index, known.arrival_s, now_s, tools, is_last)

    def admitted(self, key: str, info: TurnInfo, cached: int, uncached: int) -> None:
        """Report that a waiting turn got memory, for the first time or again."""
        resumed = key in self.cached
        self.cached.setdefault(key, cached)
        if not resumed:
            self.tokenless[key] = info
        kind = Kind.GPU_RESUME if resumed else Kind.GPU_SCHED_FIRST
        self._tell(kind, info.session, info.turn_index, cached, uncached)

    def preempted(self, info: TurnInfo, lost_tokens: int, blocks: int) -> None:
        """Report that a running turn lost its memory."""
        self._tell(Kind.GPU_PREEMPT, info.session, info.turn_index, lost_tokens, blocks)

    def first_token(self, key: str) -> None:
        """Report that a turn in ``tokenless`` has its first token."""
        info = self.tokenless.pop(key)
        self._tell(Kind.GPU_FIRST_TOKEN, info.session, info.turn_index)

    def over(self, key: str) -> int:
        """Forget a turn that leaves the engine; returns its first prefix hit, tokens."""
        self.tokenless.pop(key, None)
        return self.cached.pop(key, 0)

    def ended(self, info: TurnInfo, generated: int, prompt_tokens: int, cached: int) -> None:
        """Report that a turn is over; the last turn of a session ends the session too."""
        tools, uncached = len(info.tool_names), prompt_tokens - cached
        counts = (generated, cached, uncached, 0, tools, int(info.is_last))
        self._tell(Kind.GPU_END, info.session, info.turn_index, *counts)
        if info.is_last:
            self.roster.ended(info.session)
        elif not self.link.linked:
            self.roster.tools_started(info.session, info.turn_index, info.tool_names)

    # ---- pins (a ``engine.retention.PinListener``)

    def on_pin(self, session: int, turn_index: int, at_ps: int, blocks: int, until_ps: int) -> None:
        self._tell(Kind.KV_PIN, session, turn_index, blocks, until_ps)

    def on_unpin(
        self, session: int, turn_index: int, at_ps: int, blocks: int, reason: int, held_ps: int
    ) -> None:
        self._tell(Kind.KV_UNPIN, session, turn_index, blocks, reason, held_ps)

    # ---- the link

    def poll(self) -> None:
        """Take in what the control plane has sent."""
        self.link.poll()

    def flush(self, *, now: bool) -> None:
        """Send what happened since the last time and, if that is long ago or ``now``, the sizes."""
        self.link.flush(self._host.sizes, now=now)

    def close(self) -> None:
        """Stop listening and telling, because the server ends."""
        self.link.close()

    def _tell(self, kind: Kind, session: int, turn: int, *args: int) -> None:
        event = Event(to_s(self.now_ps()), kind, session, turn, -1, tuple(int(n) for n in args))
        self.hear(event)
        self.link.event(event)

    def hear(self, event: Event) -> None:
        """Hand an event to the policies."""
        for listen in self.listeners:
            listen(event)

"""A marsbench system inside a live vLLM server.

``vllm serve ... --scheduler-cls marsbench.engine.vllm.plugin.ServedScheduler
--additional-config '{"marsbench": {"system": "mars", "profile": "h100-nvl/qwen3-coder-30b-a3b"}}'``

``profile`` tells the policies how fast the machine is. ``params`` overrides policy parameters.
Without additional-config, MARSBENCH_SYSTEM and MARSBENCH_PROFILE say the same. A request names
its session by ``session_id``, or by the ``marsbench_*`` fields of ``vllm_xargs``; one that names
none is a session of one turn.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from marsbench.core import PS_PER_S, PolicyContext, to_s
from marsbench.engine.profile import load_profile
from marsbench.engine.vllm.scheduler import AsyncPolicyScheduler
from marsbench.engine.vllm.views import TurnInfo, held_blocks
from marsbench.errors import ConfigError
from marsbench.events import Event, Kind
from marsbench.registry import load
from marsbench.system import Policies, System

MAX_SESSIONS = 65_536
"""Sessions remembered; the one heard of least recently is forgotten first."""


@dataclasses.dataclass(slots=True)
class _Session:
    index: int
    arrival_s: float
    num_turns: int = 0
    tools: tuple[str, ...] = ()
    """Running since its last turn ended, as far as the server can tell."""


class ServedScheduler(AsyncPolicyScheduler):
    """The policies of the system that the server was started with; time is the server's own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        given = self.vllm_config.additional_config
        options = given.get("marsbench", {}) if isinstance(given, Mapping) else {}
        policies = build_policies(options, self._context(options))
        self._start_s = time.monotonic()
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._num_sessions = 0
        self._cached: dict[str, int] = {}
        self._listeners = [policies.scheduling.on_event]
        if policies.retention is not policies.scheduling:  # type: ignore[comparison-overlap]
            self._listeners.append(policies.retention.on_event)
        self.use(policies.scheduling, policies.retention, self)

    def _context(self, options: Mapping[str, Any]) -> PolicyContext:
        profile = options.get("profile") or os.environ.get("MARSBENCH_PROFILE")
        if not profile:
            raise ConfigError(
                "additional-config: marsbench.profile is missing: name the profile of this machine "
                "(marsbench list profiles), or set MARSBENCH_PROFILE"
            )
        return dataclasses.replace(
            load_profile(profile).policy_context(int(options.get("tool_cores", 0)), 0),
            num_blocks=self.view.num_blocks,
            block_size=self.view.block_size,
            max_num_batched_tokens=self.max_num_scheduled_tokens,
            max_num_seqs=self.max_num_running_reqs,
            params={name: float(value) for name, value in options.get("params", {}).items()},
        )

    # ---- Host

    def now_ps(self) -> int:
        return int((time.monotonic() - self._start_s) * PS_PER_S)

    def describe(self, request: Any) -> TurnInfo:
        hints = (request.sampling_params and request.sampling_params.extra_args) or {}
        name = hints.get("marsbench_session", request.session_id)
        now_s = to_s(self.now_ps())
        session = self._session(request.request_id if name is None else str(name), now_s)
        for tool in session.tools:
            self._tell(Kind.TOOL_END, session.index, session.num_turns - 1, 0, 0, name=tool)
        session.tools = tuple(str(tool) for tool in hints.get("marsbench_tools", ()))
        turn_index = int(hints.get("marsbench_turn", session.num_turns))
        if not session.num_turns:
            self._tell(Kind.SESSION_ARRIVE, session.index, -1, request.num_prompt_tokens, -1, -1)
        session.num_turns = turn_index + 1
        self._tell(Kind.TURN_READY, session.index, turn_index, request.num_prompt_tokens)
        self._tell(Kind.GPU_SUBMIT, session.index, turn_index, request.num_prompt_tokens, 0)
        is_last = name is None or bool(int(hints.get("marsbench_last", 0)))
        return TurnInfo(session.index, turn_index, session.arrival_s, now_s, session.tools, is_last)

    def _session(self, name: str, now_s: float) -> _Session:
        session = self._sessions.pop(name, None)
        if session is None:
            session = _Session(self._num_sessions, now_s)
            self._num_sessions += 1
        self._sessions[name] = session
        if len(self._sessions) > MAX_SESSIONS:
            forgotten = self._sessions.popitem(last=False)[1]
            self.session_ended(forgotten.index)
        return session

    def admitted(self, request: Any, cached_tokens: int) -> None:
        resumed = request.request_id in self._cached
        self._cached.setdefault(request.request_id, cached_tokens)
        turn = self.turn(request)
        kind = Kind.GPU_RESUME if resumed else Kind.GPU_SCHED_FIRST
        uncached = request.num_tokens - cached_tokens
        self._tell(kind, turn.session, turn.turn_index, cached_tokens, uncached)

    def on_pin(self, session: int, turn_index: int, at_ps: int, blocks: int, until_ps: int) -> None:
        self._tell(Kind.KV_PIN, session, turn_index, blocks, until_ps)

    def on_unpin(
        self, session: int, turn_index: int, at_ps: int, blocks: int, reason: int, held_ps: int
    ) -> None:
        self._tell(Kind.KV_UNPIN, session, turn_index, blocks, reason, held_ps)

    # ---- what the scheduler sees of a turn's life, told to the policies

    def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> None:
        turn = self.turn(request)
        held = len(held_blocks(self.kv_cache_manager, request.request_id))
        lost = request.num_computed_tokens
        super()._preempt_request(request, *args, **kwargs)
        self._tell(Kind.GPU_PREEMPT, turn.session, turn.turn_index, lost, held)

    def _update_request_with_output(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        if request.num_output_tokens == 0 and (turn := self._turns.get(request.request_id)):
            self._tell(Kind.GPU_FIRST_TOKEN, turn.session, turn.turn_index)
        return super()._update_request_with_output(request, *args, **kwargs)

    def _free_blocks(self, request: Any) -> None:
        turn = self.turn(request)
        cached = self._cached.pop(request.request_id, 0)
        super()._free_blocks(request)
        info = turn.info
        uncached = request.num_prompt_tokens - cached
        counts = (turn.generated_tokens, cached, uncached, 0, len(info.tool_names), info.is_last)
        self._tell(Kind.GPU_END, info.session, info.turn_index, *(int(n) for n in counts))
        for tool in info.tool_names:
            self._tell(Kind.TOOL_START, info.session, info.turn_index, name=tool)
        if info.is_last:
            self._tell(Kind.SESSION_END, info.session, info.turn_index, 0)
            self.session_ended(info.session)

    def _tell(self, kind: Kind, session: int, turn: int, *args: int, name: str = "") -> None:
        payload = (0, 0, *args) if name else args  # tool events: codes of name and class first
        event = Event(to_s(self.now_ps()), kind, session, turn, 0 if name else -1, payload, name)
        for listen in self._listeners:
            listen(event)


def build_policies(options: Mapping[str, Any], context: PolicyContext) -> Policies:
    """The policies of the system named in the server's options or its environment."""
    name = options.get("system") or os.environ.get("MARSBENCH_SYSTEM")
    if not name:
        raise ConfigError(
            "additional-config: marsbench.system is missing: name a system "
            "(marsbench list systems), or set MARSBENCH_SYSTEM"
        )
    system = load("SYSTEMS", name)
    if not isinstance(system, System):
        raise ConfigError(f"marsbench.system: {name} is not a marsbench.system.System")
    if system.clairvoyant is not None:
        raise ConfigError(f"marsbench.system: {name} sees the future; no server can run it")
    return system.build(context)

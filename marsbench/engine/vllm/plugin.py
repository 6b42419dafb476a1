"""A marsbench system inside a live vLLM server.

``vllm serve ... --scheduler-cls marsbench.engine.vllm.plugin.ServedScheduler
--additional-config '{"marsbench": {"system": "mars", "profile": "h100-nvl/qwen3-coder-30b-a3b"}}'``

``profile`` tells the policies how fast the machine is. ``params`` overrides policy parameters.
Without additional-config, MARSBENCH_SYSTEM and MARSBENCH_PROFILE say the same. A request names
its session by ``session_id``, or by the ``marsbench_*`` fields of ``vllm_xargs``; one that names
none is a session of one turn. ``listen`` is the ZeroMQ address of a control plane's event stream
(``marsbench serve --publish``; ``marsbench run`` sets it), ``publish`` the one at which the scheduler
tells what the engine does. With ``--no-async-scheduling`` use SyncServedScheduler.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from typing import Any

from marsbench.core import PS_PER_S, PolicyContext, to_s
from marsbench.engine.link.inside import InsideLink, Sizes
from marsbench.engine.link.roster import Roster
from marsbench.engine.profile import load_profile
from marsbench.engine.vllm.scheduler import AsyncPolicyScheduler, PolicyScheduler
from marsbench.engine.vllm.views import TurnInfo, held_blocks
from marsbench.errors import ConfigError
from marsbench.events import Event, Kind
from marsbench.registry import load
from marsbench.system import Policies, System


class SyncServedScheduler(PolicyScheduler):
    """The policies of the system that the server was started with; time is the server's own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        given = self.vllm_config.additional_config
        options = given.get("marsbench", {}) if isinstance(given, Mapping) else {}
        self._start_s = time.monotonic()
        self._roster = Roster(self._hear, self.session_ended, self.now_ps)
        self._cached: dict[str, int] = {}
        self._tokenless: set[str] = set()
        """Admitted requests that had no first token yet."""
        self._options = options
        self._install()
        self._link = InsideLink(
            listen=options.get("listen", ""),
            publish=options.get("publish", ""),
            roster=self._roster,
            now_ps=self.now_ps,
            restarted=self._restarted,
        )

    def _install(self) -> None:
        """Fresh policies."""
        policies = build_policies(self._options, self._context(self._options))
        self._listeners = [policies.scheduling.on_event]
        if policies.retention is not policies.scheduling:  # type: ignore[comparison-overlap]
            self._listeners.append(policies.retention.on_event)
        self.use(policies.scheduling, policies.retention, self)

    def _restarted(self) -> None:
        """A new run begins: what the policies learned in another one is not theirs to know."""
        if not self.requests:
            self._roster.clear()
            self._install()

    def _context(self, options: Mapping[str, Any]) -> PolicyContext:
        profile = options.get("profile") or os.environ.get("MARSBENCH_PROFILE")
        if not profile:
            raise ConfigError(
                "additional-config: marsbench.profile is missing: name the profile of this machine "
                "(marsbench list profiles), or set MARSBENCH_PROFILE"
            )
        cores, seed = int(options.get("tool_cores", 0)), int(options.get("seed", 0))
        return dataclasses.replace(
            load_profile(profile).policy_context(cores, seed),
            num_blocks=self.view.num_blocks,
            block_size=self.view.block_size,
            max_num_batched_tokens=self.max_num_scheduled_tokens,
            max_num_seqs=self.max_num_running_reqs,
            params={name: float(value) for name, value in options.get("params", {}).items()},
        )

    # ---- the link

    def add_request(self, request: Any) -> None:
        self._link.poll()
        super().add_request(request)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        self._link.poll()
        step = super().schedule(*args, **kwargs)
        self._link.flush(self._sizes, now=False)
        return step

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        done = super().update_from_output(*args, **kwargs)
        for request_id in list(self._tokenless) if self._tokenless else ():
            self._maybe_first_token(self.requests[request_id])
        self._link.flush(self._sizes, now=not self.requests)
        return done

    def shutdown(self) -> None:
        self._link.close()
        super().shutdown()

    def _sizes(self) -> Sizes:
        running, waiting = self.get_request_counts()
        view = self.view
        return view.num_blocks, view.free_blocks, view.pinned_blocks, running, waiting

    # ---- Host

    def now_ps(self) -> int:
        return int((time.monotonic() - self._start_s) * PS_PER_S)

    def describe(self, request: Any) -> TurnInfo:
        hints = (request.sampling_params and request.sampling_params.extra_args) or {}
        name = request.session_id
        if name is None:
            name = hints.get("marsbench_session")
        tools = tuple(str(tool) for tool in hints.get("marsbench_tools", ()))
        given = hints.get("marsbench_turn")
        known, turn_index = self._roster.submitted(
            request.request_id if name is None else str(name),
            request.num_prompt_tokens,
            None if given is None else int(given),
        )
        is_last = name is None or bool(int(hints.get("marsbench_last", 0)))
        now_s = to_s(self.now_ps())
        return TurnInfo(known.index, turn_index, known.arrival_s, now_s, tools, is_last)

    def admitted(self, request: Any, cached_tokens: int) -> None:
        resumed = request.request_id in self._cached
        self._cached.setdefault(request.request_id, cached_tokens)
        if not resumed:
            self._tokenless.add(request.request_id)
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

    def _maybe_first_token(self, request: Any) -> None:
        if request.num_output_tokens:
            self._tokenless.remove(request.request_id)
            turn = self.turn(request)
            self._tell(Kind.GPU_FIRST_TOKEN, turn.session, turn.turn_index)

    def _free_blocks(self, request: Any) -> None:
        turn = self.turn(request)
        if request.request_id in self._tokenless:
            self._maybe_first_token(request)
            self._tokenless.discard(request.request_id)
        cached = self._cached.pop(request.request_id, 0)
        super()._free_blocks(request)
        info = turn.info
        uncached = request.num_prompt_tokens - cached
        counts = (turn.generated_tokens, cached, uncached, 0, len(info.tool_names), info.is_last)
        self._tell(Kind.GPU_END, info.session, info.turn_index, *(int(n) for n in counts))
        if info.is_last:
            self._roster.ended(info.session)
        elif not self._link.linked:
            self._roster.tools_started(info.session, info.turn_index, info.tool_names)

    def _tell(self, kind: Kind, session: int, turn: int, *args: int) -> None:
        event = Event(to_s(self.now_ps()), kind, session, turn, -1, args)
        self._hear(event)
        self._link.event(event)

    def _hear(self, event: Event) -> None:
        for listen in self._listeners:
            listen(event)


class ServedScheduler(SyncServedScheduler, AsyncPolicyScheduler):
    """The same on vLLM's asynchronous scheduler, its default in a live server."""


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

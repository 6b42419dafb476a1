"""Live engines for an experiment: keeps one server for cells that need the same, runs each on it."""

from __future__ import annotations

import json
import os
import shlex
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from marsbench.core import PS_PER_S, Session
from marsbench.engine.base import CoreStats, EngineConfig, Request
from marsbench.engine.live.client import OPENAI, VLLM, Client, Hint, Patience
from marsbench.engine.live.clock import Clock
from marsbench.engine.live.core import LiveCore
from marsbench.engine.live.driver import LiveOutcome, refuse_engine_policies, run_live
from marsbench.engine.live.inside import Inside, require_zmq
from marsbench.engine.live.options import LiveOptions
from marsbench.engine.live.server import Server, ServerCommand, answers, vllm_command
from marsbench.engine.live.tiny_model import write_tiny_model
from marsbench.errors import EngineError
from marsbench.records import EventLog
from marsbench.system import Policies
from marsbench.tools.base import ToolAssumptions, ToolModel
from marsbench.tools.executor import ToolExecutor

if TYPE_CHECKING:
    from marsbench.arrival.base import ArrivalPlan
    from marsbench.engine.link.outside import OutsideLink

REVIVAL_S = 10.0
"""A server that failed turns and does not answer for so long is given up."""
DIALECTS = {"vllm": VLLM, "openai": OPENAI}


class LiveEngine:
    """Runs cells on real servers, one after the other. Use as a context manager.

    ``run_cell`` has the arguments of ``engine.driver.run_cell``, so that an experiment can pass it
    in that place.
    """

    def __init__(
        self,
        name: str,
        options: LiveOptions,
        *,
        salt: str,
        log_folder: Path | None = None,
        note: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """``salt`` names the run: what other runs left in a server's cache is of no use to it.
        ``log_folder`` takes the servers' logs (default: a temporary one). ``note`` is told what
        takes long.
        """
        if name == "openai" and not options.url:
            raise EngineError(
                "engine openai needs an address: -c engine.params.url=http://HOST:PORT"
            )
        self._name = name
        self._dialect = DIALECTS[name]
        self._options = options
        self._salt = salt
        self._note = note
        self._temporary = tempfile.TemporaryDirectory(prefix="marsbench-live-")
        self._logs = log_folder or Path(self._temporary.name)
        self._running: tuple[tuple[EngineConfig, Inside | None], Server] | None = None
        self._link: OutsideLink | None = None
        self._cells = 0
        self.reports: list[dict[str, Any]] = []
        """What the client saw, for each cell: punctuality, failures, the server's counters."""
        self.server_flags: dict[str, Any] = {}
        """For the run's environment: the address, or the command line of each server started."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()
        self._temporary.cleanup()

    def run_cell(
        self,
        *,
        sessions: Sequence[Session],
        arrivals: ArrivalPlan,
        core_factory: Callable[[Any], LiveCore],
        policies: Policies,
        tools: ToolModel | ToolExecutor,
        log: EventLog,
        tool_cores: int = 0,
        tool_speed: float = 1.0,
        assumptions: ToolAssumptions | None = None,
        priority: str = "none",
        progress: Callable[[int, int], None] | None = None,
        inside: Inside | None = None,
    ) -> CoreStats:
        """Run a cell to its end and fill ``log``; the server is started if it does not run yet.

        ``inside`` says which policies the server is to run, if the system schedules inside it.
        """
        options = self._options
        if policies.stock_engine() or self._name != "vllm" or options.url:
            inside = None
        in_server = bool(options.scheduler_cls) or inside is not None
        refuse_engine_policies(policies, scheduler_in_server=in_server)
        url, model = self._server(core_factory(None).config, inside)
        key = os.environ.get(options.api_key_env, "")
        patience = Patience(idle_s=options.idle_timeout_s)
        self._cells += 1
        outcome = run_live(
            sessions=sessions,
            arrivals=arrivals,
            core_factory=core_factory,
            policies=policies,
            tools=tools,
            log=log,
            connect=lambda clock: self._client(url, model, clock, patience, key),
            tool_cores=tool_cores,
            tool_speed=tool_speed,
            assumptions=assumptions,
            priority=priority,
            progress=progress,
            vocabulary=options.vocabulary,
            salt=f"{self._salt}/{self._cells}",
            hints=hints_of,
            warm_up_turns=options.warm_up_turns,
            scheduler_in_server=in_server,
            link=self._link,
        )
        if any(not done.ok for _, done in outcome.completions):
            self._check_server()
        linked = {} if self._link is None else {"link": self._link.report()}
        self.reports.append(report(outcome) | linked)
        return outcome.stats

    def _client(self, url: str, model: str, clock: Clock, patience: Patience, key: str) -> Client:
        return Client(
            url, model, clock=clock, dialect=self._dialect, patience=patience, api_key=key
        )

    # ---- servers

    def connect(self, config: EngineConfig) -> Callable[[Clock], Client]:
        """What makes clients of a stock server with these flags, which is started if need be."""
        url, model = self._server(config, None)
        key = os.environ.get(self._options.api_key_env, "")
        patience = Patience(idle_s=self._options.idle_timeout_s)
        return lambda clock: self._client(url, model, clock, patience, key)

    def _server(self, config: EngineConfig, inside: Inside | None) -> tuple[str, str]:
        """Address and model of a server with these flags and policies."""
        options = self._options
        if options.url:
            if not answers(options.url):
                self._note(f"{options.url}/health does not answer 200; trying all the same")
            model = options.model or first_model(options.url)
            self.server_flags = {"url": options.url, "model": model}
            return options.url, model
        if self._running is not None and self._running[0] == (config, inside):
            command = self._running[1].command
            return command.url, command.model
        self._stop()
        command = self._command(config, inside)
        log_path = self._logs / f"server-{len(self.server_flags)}.log"
        self._note(f"starting {command.argv[2]} at {command.url} (log: {log_path})")
        server = Server(command, log_path)
        self._running = (config, inside), server
        self.server_flags[f"server-{len(self.server_flags)}"] = command.shown()
        server.wait_ready(options.start_timeout_s)
        return command.url, command.model

    def _check_server(self) -> None:
        """A server of ours that died makes its cell fail, not every session of it."""
        if self._running is None:
            return
        server = self._running[1]
        try:
            if not answers(server.command.url):
                server.wait_ready(REVIVAL_S)
        except EngineError:
            self._stop()
            raise

    def _command(self, config: EngineConfig, inside: Inside | None) -> ServerCommand:
        check_length(config)
        options = self._options
        extra = shlex.split(options.extra_flags)
        scheduler_cls = options.scheduler_cls
        if inside is not None:
            folder = Path(self._temporary.name, f"link-{len(self.server_flags)}")
            self._link, told = self._open_link(folder)
            scheduler_cls = scheduler_cls or inside.scheduler_cls(extra)
            extra += inside.flags(told)
        model = options.model
        if not model:
            folder = Path(self._temporary.name, "model")
            write_tiny_model(folder, max_model_len=config.max_model_len, layers=options.layers)
            model = str(folder)
        command = vllm_command(
            python=Path(options.python),
            model=model,
            engine=config,
            cpu=options.on_cpu(),
            random_weights=options.random_weights or not options.model,
            scheduler_cls=scheduler_cls or None,
            stream_interval=options.stream_interval,
            worker_process=options.worker_process,
            extra=extra,
        )
        return command if inside is None else inside.importable(command)

    def _open_link(self, folder: Path) -> tuple[OutsideLink, dict[str, str]]:
        """Our end of the link, and what the scheduler is to be told of it."""
        require_zmq()
        from marsbench.engine.link.outside import OutsideLink

        folder.mkdir(mode=0o700)
        ours, theirs = f"ipc://{folder}/driver", f"ipc://{folder}/engine"
        link = OutsideLink(publish=ours, listen=theirs, note=self._note)
        return link, {"listen": ours, "publish": theirs}

    def _stop(self) -> None:
        if self._running is not None:
            self._running[1].stop()
            self._running = None
        if self._link is not None:
            self._link.close()
            self._link = None


def check_length(config: EngineConfig) -> None:
    """EngineError for flags with which vLLM would not start: a turn must fit the KV cache alone."""
    kv_tokens = config.num_blocks * config.block_size
    if config.max_model_len > kv_tokens:
        raise EngineError(
            f"max_model_len={config.max_model_len} does not fit {config.num_blocks} KV blocks of "
            f"{config.block_size}, so vLLM will not start; add engine.params "
            f"max_model_len={kv_tokens} or more num_blocks"
        )


def hints_of(request: Request) -> Mapping[str, Hint]:
    """What a scheduler plug-in may know, under the names the gateway uses too. Tools and whether it
    was the last are for the end of the turn, when an agent's server could read them in its output.
    """
    return {
        "marsbench_session": request.session,
        "marsbench_turn": request.turn_index,
        "marsbench_arrival_s": request.session_arrival_ps / PS_PER_S,
        "marsbench_tools": list(request.tool_names),
        "marsbench_last": int(request.is_last),
    }


def first_model(url: str) -> str:
    """The model a server names first."""
    try:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=10) as reply:  # noqa: S310
            return str(json.load(reply)["data"][0]["id"])
    except (urllib.error.URLError, OSError, ValueError, LookupError, TypeError) as error:
        raise EngineError(
            f"{url}/v1/models does not name a model ({error}); set engine.params.model"
        ) from error


def report(outcome: LiveOutcome) -> dict[str, Any]:
    """What a reader needs to trust a live cell: was the client on time, did the lengths hold?"""
    done = [completion for _, completion in outcome.completions]
    late_s = np.array(outcome.send_error_s or [np.nan])
    problems: dict[str, int] = {}
    for completion in done:
        for problem in completion.problems:
            name = problem.split(":", 1)[0]
            problems[name] = problems.get(name, 0) + 1
    return {
        "turns": len(done),
        "failed_turns": sum(not completion.ok for completion in done),
        "retried_turns": sum(completion.tries > 1 for completion in done),
        "problems": problems,
        "send_error_s": {
            name: None if np.isnan(late_s[0]) else float(np.percentile(late_s, percent))
            for name, percent in (("p50", 50), ("p99", 99), ("max", 100))
        },
        "wrong_prompt_lengths": sum(
            completion.ok and completion.prompt_tokens not in {-1, request.prompt_tokens}
            for request, completion in outcome.completions
        ),
        "wrong_output_lengths": sum(
            completion.ok and completion.output_tokens != completion.asked_tokens
            for completion in done
        ),
        "turns_without_server_times": sum(
            completion.ok and completion.prefill_s is None for completion in done
        ),
        "server": outcome.server._asdict(),
    }

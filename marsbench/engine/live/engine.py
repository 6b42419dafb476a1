"""Cells on real servers: keeps one server for cells that need the same, runs each cell on it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from marsbench.engine.base import EngineConfig
from marsbench.engine.elsewhere import import_path
from marsbench.engine.interpreters import find_python
from marsbench.engine.kind import Opening
from marsbench.engine.live.client import Client, Patience
from marsbench.engine.live.clock import Clock
from marsbench.engine.live.kinds.base import Launch, ServerKind
from marsbench.engine.live.load import LoadMeter, load_warning
from marsbench.engine.live.options import LiveOptions
from marsbench.engine.live.server import Server, answers, free_port
from marsbench.engine.live.tiny_model import tiny_layers, tiny_misfit, write_tiny_model
from marsbench.engine.live.wall import LiveOutcome, Site, refuse_engine_policies, run_live
from marsbench.engine.plan import CellOutcome, CellPlan, Identity, Json, Progress
from marsbench.errors import EngineError
from marsbench.extras import require
from marsbench.records import EventLog
from marsbench.tools.docker import Docker

if TYPE_CHECKING:
    from marsbench.engine.hardware import Model
    from marsbench.engine.link.outside import OutsideLink


class Served(NamedTuple):
    """A running server that is used by clients other than the driver's, such as a gateway's agents."""

    url: str
    model: str
    kind: str
    """Name of its ``ServerKind``."""
    api_key: str
    hosts_policies: bool
    """The system's engine-side policies run inside it."""


REVIVAL_S = 10.0
"""A server that failed turns and does not answer for so long is given up."""
LONGEST_FOLDER = 40
"""Characters of a folder for sockets: their whole path may have 107, and vLLM's names have 36."""


class Wanted(NamedTuple):
    """What a running server must be like so that it can serve a cell."""

    config: EngineConfig
    inside: Identity | None
    """The system inside it, if one is."""
    layers: int
    """Of the tiny model, if that is started."""


class LiveEngine:
    """An ``engine.plan.Engine`` on real servers. Use as a context manager."""

    def __init__(self, kind: ServerKind, options: LiveOptions, opening: Opening) -> None:
        """Raise EngineError if there is neither an address nor an interpreter that can start a
        server.
        """
        if not options.url:
            if not kind.package:
                raise EngineError(
                    f"engine {kind.name} needs an address: -c engine.params.url=http://HOST:PORT"
                )
            options = replace(options, python=str(find_python(kind.package, options.python)))
        self._kind = kind
        self._options = options
        self._opening = opening
        # NOTE: ignored errors: a server's sockets in here may go while the folder is emptied.
        self._temporary = tempfile.TemporaryDirectory(
            prefix="marsbench-live-", dir=_short_folder(), ignore_cleanup_errors=True
        )
        self._running: tuple[Wanted, Server] | None = None
        self._link: OutsideLink | None = None
        self._cells = 0
        self._described: dict[str, Json] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()
        self._temporary.cleanup()

    def run(self, plan: CellPlan, log: EventLog, progress: Progress | None = None) -> CellOutcome:
        """See ``Engine.run``; the server is started if it does not run yet."""
        options, kind = self._options, self._kind
        inside = plan.identity
        if plan.policies.stock_engine() or not kind.hosts_policies or options.url:
            inside = None
        hosted = bool(options.scheduler_cls) or inside is not None
        refuse_engine_policies(plan.policies, hosted=hosted)
        connect = self._connect(plan.flags, inside, plan.model)
        self._cells += 1
        site = Site(
            connect=connect,
            vocabulary=options.vocabulary,
            salt=f"{self._opening.run_id}/{self._cells}",
            warm_up_turns=options.warm_up_turns,
            hosts_policies=hosted,
            link=self._link,
            check=self._check_alive,
        )
        meter = LoadMeter(options.url)
        outcome = run_live(plan, log, site, progress)
        # NOTE: what runs in containers is ours too, but no child of this process.
        others = meter.others(outcome.tool_cpu_s if isinstance(plan.tools, Docker) else 0.0)
        if failed := sum(not done.ok for _, done in outcome.completions):
            self._check_server(failed)
        found = report(outcome)
        found["others_cpu_share"] = others
        if self._link is not None:
            found["link"] = self._link.report()
        warnings = [*doubts(outcome), load_warning(others), self._misfit(plan.model)]
        return CellOutcome(
            outcome.stats, {"live": found}, tuple(text for text in warnings if text is not None)
        )

    def described(self) -> Mapping[str, Json]:
        """Return the address of the server, or the command line of each server that was started."""
        return self._described

    def connect(
        self, config: EngineConfig, model: Model | None = None
    ) -> Callable[[Clock], Client]:
        """Return what makes clients of a stock server with these flags; the server is started if
        need be.

        ``model`` is what the profile says of its shape.
        """
        return self._connect(config, None, model)

    def serve(self, plan: CellPlan, link: Mapping[str, str]) -> Served:
        """Provide a server for clients other than the driver's (a gateway's agents); it is started
        if need be.

        ``link`` has the addresses that policies inside the server are told of.
        """
        options, kind = self._options, self._kind
        stock = plan.policies.stock_engine()
        hosted = not (stock or options.url) and kind.hosts_policies
        refuse_engine_policies(plan.policies, hosted=hosted or bool(options.scheduler_cls))
        wanted = self._wanted(plan.flags, plan.identity if hosted else None, plan.model)
        url, model = self._server(wanted, link)
        return Served(url, model, kind.name, os.environ.get(options.api_key_env, ""), hosted)

    # ---- servers

    def _connect(
        self, config: EngineConfig, inside: Identity | None, shape: Model | None
    ) -> Callable[[Clock], Client]:
        url, model = self._server(self._wanted(config, inside, shape))
        patience = Patience(idle_s=self._options.idle_timeout_s)
        key = os.environ.get(self._options.api_key_env, "")
        return lambda clock: Client(
            url, model, clock=clock, kind=self._kind, patience=patience, api_key=key
        )

    def _wanted(self, config: EngineConfig, inside: Identity | None, model: Model | None) -> Wanted:
        return Wanted(config, inside, tiny_layers(self._options.layers, model))

    def _misfit(self, model: Model | None) -> str | None:
        """Return one line if the server that was started does not have the profile's model, else
        None.
        """
        if self._options.url or self._options.model:
            return None
        return tiny_misfit(tiny_layers(self._options.layers, model), model)

    def _server(self, wanted: Wanted, link: Mapping[str, str] | None = None) -> tuple[str, str]:
        """Return address and model of a server with these flags and policies. ``link`` is what its
        scheduler is told of a link that somebody else has opened.
        """
        options, note = self._options, self._opening.note
        if options.url:
            if not answers(options.url):
                note(f"{options.url}/health does not answer 200; trying all the same")
            model = options.model or first_model(options.url)
            self._described = {"url": options.url, "model": model}
            return options.url, model
        if self._running is not None and self._running[0] == wanted:
            command = self._running[1].command
            return command.url, command.model
        self._stop()
        number = len(self._described)
        launch = self._launch(wanted, number, link)
        command = self._kind.command(launch)
        path = os.pathsep.join([import_path(), *command.path])
        command = replace(command, env={**command.env, "PYTHONPATH": path})
        log_path = Path(self._temporary.name, f"server-{number}.log")
        note(f"starting {command.argv[2]} at {command.url}")
        server = Server(command, log_path)
        self._running = wanted, server
        self._described[f"server-{number}"] = command.shown()
        try:
            server.wait_ready(options.start_timeout_s)
            self._kind.check_log(launch, log_path.read_text(encoding="utf-8", errors="replace"))
        except EngineError as error:
            raise self._buried(server, error) from error
        return command.url, command.model

    def _launch(self, wanted: Wanted, number: int, link: Mapping[str, str] | None) -> Launch:
        options, (config, inside, layers) = self._options, wanted
        model, told = options.model, dict[str, str]()
        if not model:
            folder = Path(self._temporary.name, "model")
            write_tiny_model(folder, max_model_len=config.max_model_len, layers=layers)
            model = str(folder)
        if inside is not None and link is not None:
            told = dict(link)
        elif inside is not None:
            self._link, told = self._open_link(Path(self._temporary.name, f"link-{number}"))
        sockets = Path(self._temporary.name, "s")
        sockets.mkdir(exist_ok=True)
        python, port = Path(options.python), free_port()
        return Launch(python, model, config, options, port, inside, told, str(sockets))

    def _check_alive(self, failed_turns: int) -> None:
        """Raise an error if a server that was started here has ended, so that its cell fails at
        once and not session by session.
        """
        if self._running is not None and self._running[1].ended is not None:
            raise self._died(self._running[1], failed_turns)

    def _check_server(self, failed_turns: int) -> None:
        """Do the same at the end of a cell, when a server that has ended may be found out for
        certain.
        """
        if self._running is None:
            return
        server = self._running[1]
        try:
            if not answers(server.command.url):
                server.wait_ready(REVIVAL_S)
        except EngineError as error:
            raise self._died(server, failed_turns) from error

    def _died(self, server: Server, failed_turns: int) -> EngineError:
        """Return the error for a server that went away in the middle of a cell, in one line."""
        ended = server.ended
        how = "no longer answers" if ended is None else f"ended with status {ended}"
        kept = self._keep_log(server)
        where = "" if kept is None else f"; its log: {kept}"
        turns = "1 turn" if failed_turns == 1 else f"{failed_turns} turns"
        return EngineError(f"the server {how} in the middle of the cell: {turns} failed{where}")

    def _buried(self, server: Server, error: EngineError) -> EngineError:
        """Return the error for a server that did not start; it names the log, which outlasts the
        server.
        """
        kept = self._keep_log(server)
        if kept is None:
            return error
        text, path = str(error), str(server.log_path)
        return EngineError(
            text.replace(path, str(kept)) if path in text else f"{text} (log: {kept})"
        )

    def _keep_log(self, server: Server) -> Path | None:
        """Stop a server that failed. Returns where its log lies now, or None if nowhere that lasts."""
        self._stop()
        folder = self._opening.log_folder
        if folder is None:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / server.log_path.name
        shutil.copyfile(server.log_path, kept)
        return kept

    def _open_link(self, folder: Path) -> tuple[OutsideLink, dict[str, str]]:
        """Open this end of the link. Returns it with what the scheduler is to be told of it."""
        require("live", "a system that schedules inside the engine")
        from marsbench.engine.link.outside import OutsideLink

        folder.mkdir(mode=0o700)
        ours, theirs = f"ipc://{folder}/driver", f"ipc://{folder}/engine"
        link = OutsideLink(publish=ours, listen=theirs, note=self._opening.note)
        return link, {"listen": ours, "publish": theirs}

    def _stop(self) -> None:
        if self._running is not None:
            self._running[1].stop()
            self._running = None
        if self._link is not None:
            self._link.close()
            self._link = None


def _short_folder() -> str | None:
    """Return where to put the temporary folder, or None for the usual place if its path is short
    enough for sockets.
    """
    return None if len(tempfile.gettempdir()) <= LONGEST_FOLDER else "/tmp"  # noqa: S108


def first_model(url: str) -> str:
    """Return the name of the model that a server lists first."""
    try:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=10) as reply:  # noqa: S310
            return str(json.load(reply)["data"][0]["id"])
    except (urllib.error.URLError, OSError, ValueError, LookupError, TypeError) as error:
        raise EngineError(
            f"{url}/v1/models does not name a model ({error}); set engine.params.model"
        ) from error


def report(outcome: LiveOutcome) -> dict[str, Json]:
    """Return what a reader needs to trust a live cell: whether the client was on time, and whether
    outputs had the lengths asked for.
    """
    done = [completion for _, completion in outcome.completions]
    late_s = np.array(outcome.send_error_s or [np.nan])
    counted: dict[str, int] = {}
    for completion in done:
        for problem in completion.problems:
            name = problem.split(":", 1)[0]
            counted[name] = counted.get(name, 0) + 1
    return {
        "turns": len(done),
        "failed_turns": sum(not completion.ok for completion in done),
        "retried_turns": sum(completion.tries > 1 for completion in done),
        "problems": dict(counted),
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
        "stalls_s": [*outcome.stalls_s],
        "server": outcome.server._asdict(),
    }


def doubts(outcome: LiveOutcome) -> list[str]:
    """Return what makes the times of a live cell doubtful, one line for each reason."""
    found = []
    if lost := [done for _, done in outcome.completions if not done.ok]:
        reasons = Counter(done.problems[-1].split(":", 1)[0] for done in lost if done.problems)
        told = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
        found.append(f"{len(lost)} of {len(outcome.completions)} turns failed: {told}")
    if outcome.stalls_s:
        found.append(
            f"the server stalled {len(outcome.stalls_s)} times, for "
            f"{max(outcome.stalls_s):.1f} s at the longest: its latencies are not the system's"
        )
    return found

"""``marsbench serve``: an OpenAI-compatible gateway with a system's control plane in front."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marsbench.cli import RunFailed
from marsbench.errors import ConfigError

if TYPE_CHECKING:
    from marsbench.gateway.app import Gateway
    from marsbench.gateway.recording.run import RunRecorder
    from marsbench.gateway.settings import GatewaySettings

DEFAULT_PROFILE = "h100-nvl/qwen3-coder-30b-a3b"
Upstream = Annotated[
    list[str], typer.Option("--upstream", "-u", help="URL of a backend; repeat for several.")
]
Host = Annotated[str, typer.Option(help="Address to listen on; others than loopback need a token.")]
Port = Annotated[int, typer.Option(help="Port to listen on; 0 = any.")]
TokenFile = Annotated[
    Path | None, typer.Option(help="Bearer tokens of clients: a line each, TOKEN or TOKEN TENANT.")
]
KeyFile = Annotated[Path | None, typer.Option(help="API key for the backends.")]
Engine = Annotated[str, typer.Option(help="Backends: auto, vllm, sglang or openai.")]
PerKey = Annotated[bool, typer.Option("--session-per-key", help="Each API key is one session.")]
Idle = Annotated[float, typer.Option(help="Seconds of silence that end a session.")]


def command(
    upstream: Upstream,
    system: Annotated[
        str, typer.Option("--system", "-s", help="Whose policies decide; see `marsbench list`.")
    ] = "vllm",
    host: Host = "127.0.0.1",
    port: Port = 8080,
    workers: Annotated[
        int, typer.Option(help="HTTP processes; above 1, before one control plane of their own.")
    ] = 1,
    profile: Annotated[
        str, typer.Option(help="What policies are told of the deployment.")
    ] = DEFAULT_PROFILE,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", metavar="NAME=VALUE", help="Parameter of the policy."),
    ] = None,
    tool_cores: Annotated[int, typer.Option(help="Cores of the tool pool; 0 = no limit.")] = 0,
    engine: Engine = "auto",
    token_file: TokenFile = None,
    admin_token_file: Annotated[
        Path | None, typer.Option(help="Bearer tokens for /v1/admin and /metrics, one a line.")
    ] = None,
    metrics_port: Annotated[
        int, typer.Option(help="Also serve /metrics and /health here, without a token; 0 = no.")
    ] = 0,
    metrics_host: Annotated[str, typer.Option(help="Address of --metrics-port.")] = "127.0.0.1",
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="Origin of web pages that may call; repeatable.")
    ] = None,
    log_format: Annotated[str, typer.Option(help="text, or json: one object a line.")] = "text",
    access_log: Annotated[
        bool, typer.Option("--access-log", help="Log a line for each request, without content.")
    ] = False,
    upstream_key_file: KeyFile = None,
    session_per_key: PerKey = False,
    session_idle: Idle = 300.0,
    call_idle: Annotated[
        float, typer.Option(help="The same while tool calls of the session may still run.")
    ] = 3600.0,
    admission_timeout: Annotated[
        float, typer.Option(help="Most seconds a turn waits for admission.")
    ] = 1800.0,
    upstream_timeout: Annotated[
        float, typer.Option(help="Most seconds without a byte from a backend.")
    ] = 600.0,
    rate_limit: Annotated[
        float, typer.Option(help="Requests per second of one client; 0 = no limit.")
    ] = 0.0,
    max_sessions: Annotated[
        int, typer.Option(help="Unfinished sessions of one client; 0 = no limit.")
    ] = 0,
    max_connections: Annotated[
        int, typer.Option(help="Connections of one address; 0 = no limit.")
    ] = 0,
    max_body_mib: Annotated[int, typer.Option(help="Largest request body.")] = 32,
    max_bodies_mib: Annotated[int, typer.Option(help="All request bodies in memory.")] = 256,
    drain: Annotated[float, typer.Option(help="Seconds for turns to finish on SIGTERM.")] = 120.0,
    publish: Annotated[
        str, typer.Option(help="ZeroMQ address for the event stream, e.g. ipc:///run/mars.")
    ] = "",
    engine_stream: Annotated[
        list[str] | None,
        typer.Option(
            help="ZeroMQ address where a backend's plug-in publishes; one for each backend."
        ),
    ] = None,
    otlp: Annotated[
        str,
        typer.Option(
            help="Send spans there: OTLP over HTTP, e.g. http://127.0.0.1:4318/v1/traces."
        ),
    ] = "",
    record: Annotated[
        Path | None, typer.Option(help="Also write a trace of what runs through.")
    ] = None,
    append: Annotated[bool, typer.Option("--append", help="Add to the trace.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write the served traffic as a run folder."),
    ] = None,
    out_mib: Annotated[int, typer.Option(help="Most the run folder holds; old parts go.")] = 1024,
) -> None:
    """Serve agents through a system's control plane; backends and clients stay as they are.

    The same policies that the simulator runs decide when a session's turn goes to the engine.
    """
    from marsbench.gateway.settings import GatewaySettings, Limits, Timeouts

    settings = GatewaySettings(
        backends=tuple(upstream),
        host=host,
        port=port,
        workers=workers,
        system=system,
        profile=profile,
        params=_params(param or []),
        engine=engine,
        tool_cores=tool_cores,
        tokens=read_tokens(token_file),
        admin_tokens=read_tokens(admin_token_file),
        metrics_port=metrics_port,
        metrics_host=metrics_host,
        cors_origins=tuple(cors_origin or ()),
        access_log=access_log,
        upstream_key=read_key(upstream_key_file),
        session_per_key=session_per_key,
        publish=publish,
        engine_streams=tuple(engine_stream or ()),
        otlp=otlp,
        record=record,
        append=append,
        out=out,
        out_bytes=out_mib << 20,
        limits=Limits(
            requests_per_s=rate_limit,
            sessions=max_sessions,
            client_connections=max_connections,
            body_bytes=max_body_mib << 20,
            all_body_bytes=max_bodies_mib << 20,
        ),
        timeouts=Timeouts(
            session_idle_s=session_idle,
            call_idle_s=call_idle,
            admission_s=admission_timeout,
            upstream_read_s=upstream_timeout,
            drain_s=drain,
        ),
    )
    gateway = run(settings, f"serving system {system}", log_format)
    if gateway.run is not None:
        print(f"marsbench: {served(gateway.run)}", file=sys.stderr)


def run(settings: GatewaySettings, doing: str, log_format: str = "text") -> Gateway:
    """Run a gateway until a signal ends it; ``doing`` is what it announces of itself."""
    from marsbench.extras import require

    require("gateway", "the gateway")
    from marsbench.gateway.http.server import (
        DrainingServer,
        bind_all,
        build_gateway,
        listen,
        make_server,
    )
    from marsbench.gateway.monitoring.logs import log_to_stderr
    from marsbench.gateway.workers.crew import make_main_server

    log_to_stderr(log_format)
    with ExitStack() as stack:
        listeners = [stack.enter_context(sock) for sock in bind_all(settings)]
        watched = []
        if settings.metrics_port:
            watched = [stack.enter_context(listen(settings.metrics_host, settings.metrics_port))]
        gateway = build_gateway(settings)
        gateway.guard.metrics_port = settings.metrics_port
        host, port = listeners[0].getsockname()[:2]
        where = f"{host} port {port}"
        if settings.workers > 1:
            server: DrainingServer = make_main_server(gateway, listeners, log_format)
            where += f" with {settings.workers} workers"
        else:
            server = make_server(gateway)
            watched = listeners + watched
        backends = ", ".join(settings.backends)
        print(f"marsbench: {doing} on {where} for {backends}", file=sys.stderr)
        server.run(sockets=watched)
    if not server.started:
        raise RunFailed("the gateway did not start; see above")
    return gateway


def served(run: RunRecorder) -> str:
    """What a run folder of served traffic holds and how to go on with it, in one line."""
    told = f"{run.path}: {run.num_sessions} sessions in {run.num_parts} parts"
    if run.dropped:
        told += f", {run.dropped} sessions not recorded"
    if run.rotated:
        told += f", {run.rotated} oldest parts deleted"
    return f"{told}; see `marsbench report {run.path}`" if run.num_sessions else told


def read_tokens(path: Path | None) -> tuple[str, ...]:
    """The lines of a token file."""
    if path is None:
        return ()
    tokens = tuple(line.strip() for line in _read(path).splitlines() if line.strip())
    if not tokens:
        raise ConfigError(f"{path}: holds no token; write one a line")
    return tokens


def read_key(path: Path | None) -> str:
    """The one line of a key file."""
    if path is None:
        return ""
    key = _read(path).strip()
    if not key or len(key.split()) != 1:
        raise ConfigError(f"{path}: must hold exactly one key")
    return key


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not plain ASCII"
        raise ConfigError(f"{path}: cannot read it: {reason}") from error


def _params(given: list[str]) -> dict[str, float]:
    found = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise ConfigError(f"--param {text!r}: write NAME=NUMBER") from None
    return found

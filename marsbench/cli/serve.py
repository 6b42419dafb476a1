"""``marsbench serve``: an OpenAI-compatible gateway with a system's control plane in front."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marsbench.cli import RunFailed
from marsbench.errors import ConfigError

if TYPE_CHECKING:
    from marsbench.gateway.settings import GatewaySettings

Upstream = Annotated[
    list[str], typer.Option("--upstream", "-u", help="URL of a backend; repeat for several.")
]
Host = Annotated[str, typer.Option(help="Address to listen on; others than loopback need a token.")]
Port = Annotated[int, typer.Option(help="Port to listen on; 0 = any.")]
TokenFile = Annotated[
    Path | None, typer.Option(help="Bearer tokens clients must send, one a line.")
]
KeyFile = Annotated[Path | None, typer.Option(help="API key for the backends.")]
Engine = Annotated[str, typer.Option(help="Backends: auto, vllm or openai.")]
PerKey = Annotated[bool, typer.Option("--session-per-key", help="Each API key is one session.")]
Idle = Annotated[float, typer.Option(help="Seconds of silence that end a session.")]


def command(
    upstream: Upstream,
    system: Annotated[
        str, typer.Option("--system", "-s", help="Whose policies decide; see `marsbench list`.")
    ] = "vllm",
    host: Host = "127.0.0.1",
    port: Port = 8080,
    profile: Annotated[
        str, typer.Option(help="What policies are told of the deployment.")
    ] = "h100-nvl/qwen3-coder-30b-a3b",
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", metavar="NAME=VALUE", help="Parameter of the policy."),
    ] = None,
    tool_cores: Annotated[int, typer.Option(help="Cores of the tool pool; 0 = no limit.")] = 0,
    engine: Engine = "auto",
    token_file: TokenFile = None,
    upstream_key_file: KeyFile = None,
    session_per_key: PerKey = False,
    session_idle: Idle = 300.0,
    admission_timeout: Annotated[
        float, typer.Option(help="Most seconds a turn waits for admission.")
    ] = 1800.0,
    upstream_timeout: Annotated[
        float, typer.Option(help="Most seconds without a byte from a backend.")
    ] = 600.0,
    rate_limit: Annotated[
        float, typer.Option(help="Requests per second of one client; 0 = no limit.")
    ] = 0.0,
    max_body_mib: Annotated[int, typer.Option(help="Largest request body.")] = 32,
    drain: Annotated[float, typer.Option(help="Seconds for turns to finish on SIGTERM.")] = 120.0,
    publish: Annotated[
        str, typer.Option(help="ZeroMQ address for the event stream, e.g. ipc:///run/mars.")
    ] = "",
    record: Annotated[
        Path | None, typer.Option(help="Also write a trace of what runs through.")
    ] = None,
    append: Annotated[bool, typer.Option("--append", help="Add to the trace.")] = False,
) -> None:
    """Serve agents through a system's control plane; backends and clients stay as they are.

    The same policies that the simulator runs decide when a session's turn goes to the engine.
    """
    from marsbench.gateway.settings import GatewaySettings, Limits, Waits

    settings = GatewaySettings(
        backends=tuple(upstream),
        host=host,
        port=port,
        system=system,
        profile=profile,
        params=_params(param or []),
        engine=engine,
        tool_cores=tool_cores,
        tokens=read_tokens(token_file),
        upstream_key=read_key(upstream_key_file),
        session_per_key=session_per_key,
        publish=publish,
        record=record,
        append=append,
        limits=Limits(requests_per_s=rate_limit, body_bytes=max_body_mib << 20),
        waits=Waits(
            session_idle_s=session_idle,
            admission_s=admission_timeout,
            upstream_read_s=upstream_timeout,
            drain_s=drain,
        ),
    )
    run(settings)


def run(settings: GatewaySettings) -> None:
    """Run a gateway until a signal ends it."""
    import logging

    try:
        from marsbench.gateway.server import bind, build_gateway, make_server
    except ImportError as error:
        raise ConfigError(
            f"the gateway needs {error.name}; install it: pip install 'marsbench[gateway]'"
        ) from error
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    with bind(settings) as listener:
        server = make_server(build_gateway(settings))
        host, port = listener.getsockname()[:2]
        backends = ", ".join(settings.backends)
        print(f"marsbench: {settings.system} on {host} port {port} for {backends}", file=sys.stderr)
        server.run(sockets=[listener])
    if not server.started:
        raise RunFailed("the gateway did not start; see above")


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

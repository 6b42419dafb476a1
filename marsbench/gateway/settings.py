"""What an operator may set on a gateway, checked before anything listens."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from marsbench.errors import ConfigError

ENGINES = ("auto", "vllm", "sglang", "openai")
"""What the backends are: ``auto`` looks at their /metrics."""
MOST_WORKERS = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may cost the gateway."""

    body_bytes: int = 32 << 20
    header_bytes: int = 64 << 10
    all_body_bytes: int = 256 << 20
    """Of the bodies of all requests that are being served."""
    connections: int = 4096
    client_connections: int = 0
    """Of one address; 0 = no limit (behind a proxy all clients have one address)."""
    sessions: int = 0
    """Unfinished sessions of one client; 0 = no limit."""
    requests_per_s: float = 0.0
    """Of one client (its tenant, else its API key, else its address); 0 = no limit."""
    burst: int = 20
    """Requests a client may send at once before ``requests_per_s`` counts."""
    header_s: float = 10.0
    """From connection or first byte to the end of the request's head."""
    body_s: float = 60.0
    """For the whole body to arrive."""
    keep_alive_s: float = 75.0
    send_s: float = 60.0
    """How long a client may not take a byte while there are some for it."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long the gateway waits for backends, policies and silent sessions, seconds."""

    connect_s: float = 5.0
    upstream_read_s: float = 600.0
    """Without a byte from the backend, its queue included."""
    admission_s: float = 1800.0
    session_idle_s: float = 300.0
    """Without a request, a tool lease or a turn in flight: the session has ended."""
    call_idle_s: float = 3600.0
    """The same for sessions whose last reply asked for tool calls: these may still run."""
    lease_s: float = 600.0
    """Default and most a tool lease lives without renewal."""
    health_s: float = 2.0
    """Between two health checks of a backend."""
    telemetry_s: float = 0.5
    """Between two readings of a backend's /metrics."""
    start_s: float = 30.0
    """For the first backend to answer before the gateway begins without."""
    drain_s: float = 120.0
    """For turns in flight to finish after SIGTERM."""


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Everything about one gateway. Raises ConfigError for what cannot work."""

    backends: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    """Processes that accept connections; more than one have the control plane in a process of its own."""
    system: str = "vllm"
    profile: str = "h100-nvl/qwen3-coder-30b-a3b"
    """Where a policy's knowledge of the deployment comes from; what a vLLM backend says of its
    KV cache replaces the profile's."""
    params: Mapping[str, float] = field(default_factory=dict)
    engine: str = "auto"
    tool_cores: int = 0
    tokens: tuple[str, ...] = ()
    """Bearer tokens, each alone or followed by the name of its tenant; none = no authentication
    (loopback only)."""
    admin_tokens: tuple[str, ...] = ()
    """Bearer tokens for /v1/admin and /metrics."""
    metrics_port: int = 0
    """Also serve /metrics, /health and /ready there, without a token; 0 = no."""
    metrics_host: str = "127.0.0.1"
    cors_origins: tuple[str, ...] = ()
    """Web pages of these origins may call; none = no web page may."""
    access_log: bool = False
    """Log a line for each request."""
    upstream_key: str = ""
    """Sent to the backends instead of the client's own Authorization header."""
    session_per_key: bool = False
    """Each API key is one session (harnesses that can set nothing else)."""
    ask_usage: bool = True
    """Ask backends for token counts of streams; the extra event is kept from the client."""
    publish: str = ""
    """ZeroMQ address the event stream is published on; empty = nowhere."""
    engine_streams: tuple[str, ...] = ()
    """ZeroMQ addresses at which the backends' plug-ins publish, in the order of ``backends``: what only
    the scheduler knows (pinned blocks) is put on /metrics."""
    otlp: str = ""
    """Where spans are sent (OTLP over HTTP), e.g. http://127.0.0.1:4318/v1/traces; empty = nowhere."""
    record: Path | None = None
    """Canonical trace of what runs through."""
    append: bool = False
    out: Path | None = None
    """Run folder of what runs through."""
    out_bytes: int = 1 << 30
    """Most that the run folder holds; its oldest parts go first."""
    max_ejection_failures: int = 3
    """Failures in a row after which a backend gets no turns until a health check succeeds."""
    limits: Limits = field(default_factory=Limits)
    timeouts: Timeouts = field(default_factory=Timeouts)

    def __post_init__(self) -> None:
        if not self.backends:
            raise ConfigError("no backend; give at least one --upstream http://HOST:PORT")
        for url in self.backends:
            parts = urlsplit(url)
            if parts.scheme not in {"http", "https"} or not parts.hostname:
                raise ConfigError(f"--upstream {url!r}: not a URL like http://127.0.0.1:8000")
            if parts.username or parts.password:
                raise ConfigError(
                    f"--upstream {parts.hostname}: put the key into --upstream-key-file"
                )
        if len(set(self.backends)) != len(self.backends):
            raise ConfigError("--upstream names the same backend twice; give each once")
        if self.engine not in ENGINES:
            raise ConfigError(f"--engine {self.engine!r}: choose one of {', '.join(ENGINES)}")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port {self.port}: must be between 0 and 65535")
        if not 1 <= self.workers <= MOST_WORKERS:
            raise ConfigError(f"--workers {self.workers}: must be between 1 and {MOST_WORKERS}")
        if self.tool_cores < 0:
            raise ConfigError(f"--tool-cores {self.tool_cores}: must be 0 (no limit) or more")
        if not is_loopback(self.host) and not self.tokens:
            raise ConfigError(
                f"--host {self.host} can be reached by others; give --token-file with a bearer "
                "token, or listen on 127.0.0.1"
            )
        if self.out_bytes <= 0:
            raise ConfigError(f"--out-mib {self.out_bytes >> 20}: must be positive")
        if any(len(token) < 8 for token in (*self.tenants, *self.admin_tokens)):
            raise ConfigError("a bearer token is shorter than 8 characters; use a longer one")
        optional = ("requests_per_s", "sessions", "client_connections")
        _check_positive("limits", self.limits, allow_zero=optional)
        _check_positive("timeouts", self.timeouts)
        _check_publish(self.publish)
        if self.engine_streams and len(self.engine_streams) != len(self.backends):
            raise ConfigError(
                f"--engine-stream: {len(self.engine_streams)} given for {len(self.backends)} backends; "
                "give one for each --upstream, in their order"
            )
        otlp = urlsplit(self.otlp)
        if self.otlp and (otlp.scheme not in {"http", "https"} or not otlp.hostname):
            raise ConfigError(
                f"--otlp {self.otlp!r}: not a URL like http://127.0.0.1:4318/v1/traces"
            )

    @property
    def tenants(self) -> dict[str, str]:
        """Bearer token -> name of its tenant."""
        found = {}
        for line in self.tokens:
            token, *name = line.split()
            found[token] = " ".join(name) or "default"
        return found


def is_loopback(host: str) -> bool:
    """True if only this machine reaches a listener on ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_positive(
    where: str, values: Limits | Timeouts, allow_zero: tuple[str, ...] = ()
) -> None:
    for name in values.__dataclass_fields__:
        value = getattr(values, name)
        if value < 0 or (value == 0 and name not in allow_zero):
            raise ConfigError(f"gateway {where}: {name} must be positive, got {value:g}")


def _check_publish(address: str) -> None:
    """The stream has no authentication, so it stays on this machine."""
    if not address or address.startswith(("ipc://", "inproc://")):
        return
    host = urlsplit(address).hostname or ""
    if not address.startswith("tcp://") or not is_loopback(host):
        raise ConfigError(
            f"--publish {address!r}: use ipc:///PATH or tcp://127.0.0.1:PORT (events carry no "
            "authentication)"
        )

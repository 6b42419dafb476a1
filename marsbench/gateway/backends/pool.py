"""The engines behind a gateway: which are healthy, what they say about themselves, who goes where."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp

from marsbench.engine.live.metrics import ServerMetrics
from marsbench.errors import PolicyError
from marsbench.gateway.backends.lines import BackendLine
from marsbench.gateway.backends.routing import StickyLeastLoaded, least_loaded
from marsbench.gateway.control.bus import WallClock
from marsbench.gateway.control.sessions import LiveSession
from marsbench.gateway.control.views import ReplicaView, read_metrics
from marsbench.gateway.problems import ApiProblem
from marsbench.gateway.settings import GatewaySettings
from marsbench.routing.base import RoutingPolicy

logger = logging.getLogger(__name__)

PROBE_S = 2.0
MAX_HOLD_S = 60.0
"""Longest time an ejected backend stays out whatever its health check says; doubled each time."""
PROBE_TIMEOUT = aiohttp.ClientTimeout(total=PROBE_S)
MAX_PAGE_BYTES = 8 << 20
SILENT_S = 10.0
"""Between two tries to read the /metrics of a backend that has none."""


@dataclass(slots=True)
class Backend:
    """One engine behind the gateway, with its health and its load."""

    index: int
    line: BackendLine
    view: ReplicaView
    engine: str = ""
    """Which engine it is, as in ``--engine``; empty where that is not known."""
    healthy: bool = False
    """It gets turns. Not before its first health check."""
    failures: int = 0
    """In a row."""
    ejections: int = 0
    """Since its last good answer."""
    hold_until_s: float = 0.0
    """It is not brought back before."""
    silent_until_s: float = 0.0
    """It has no /metrics that we can read, and is not asked again before."""

    @property
    def url(self) -> str:
        """Where it is."""
        return self.line.url


class BackendPool:
    """All backends: health, telemetry, and the choice for a turn."""

    def __init__(
        self,
        settings: GatewaySettings,
        backends: Sequence[Backend],
        policy: RoutingPolicy,
        clock: WallClock,
    ) -> None:
        self.backends = list(backends)
        self.views = [backend.view for backend in self.backends]
        self.policy = policy
        self._settings = settings
        self._clock = clock

    @property
    def healthy(self) -> list[int]:
        """Indices of backends that get turns."""
        return [backend.index for backend in self.backends if backend.healthy]

    def route(self, session: LiveSession) -> int:
        """Choose the backend for a turn; ApiProblem (503) if all are ejected."""
        return self._choose(session, set())

    def reroute(self, session: LiveSession, tried: set[int]) -> int | None:
        """Choose another backend for a turn that could not be sent to those ``tried``; None if
        there is none.
        """
        if set(self.healthy) <= tried:
            return None
        return self._choose(session, tried)

    def failed(self, index: int, why: str, *, answered: bool = False) -> None:
        """Count a backend that did not answer, or (``answered``) answered with a server error.

        The last healthy backend is never ejected for its answers: one client's bad request must not
        take the service from all others.
        """
        backend = self.backends[index]
        backend.failures += 1
        if not answered or self.healthy != [index]:
            self._eject_if_failing(backend, why)

    def succeeded(self, index: int) -> None:
        """Note that a backend answered well."""
        backend = self.backends[index]
        backend.failures = backend.ejections = 0

    async def check(self) -> None:
        """Check the health of every backend once, and bring in those that are well.

        Servers of somebody else (engine openai) are only asked while they are out.
        """
        for backend in self.backends:
            backend.line.upstream.tidy()
        passive = self._settings.engine == "openai"
        asked = [b for b in self.backends if not (passive and b.healthy)]
        found = await asyncio.gather(*(self._probe(backend) for backend in asked))
        for backend, why in zip(asked, found, strict=True):
            if why:
                if not backend.failures and not backend.healthy:
                    logger.warning("backend %d (%s) is down: %s", backend.index, backend.url, why)
                backend.failures += 1
                self._eject_if_failing(backend, why)
            elif not backend.healthy and self._clock.now_s() >= backend.hold_until_s:
                backend.healthy = True
                backend.failures = 0
                backend.silent_until_s = 0.0
                if backend.ejections:
                    logger.warning("backend %d is back", backend.index)

    async def read_telemetry(self) -> None:
        """Read the /metrics of every healthy backend once."""
        if self._settings.engine == "openai":
            return
        now_s = self._clock.now_s()
        asked = [b for b in self.backends if b.healthy and now_s >= b.silent_until_s]
        found = await asyncio.gather(*(self._metrics(backend) for backend in asked))
        for backend, answer in zip(asked, found, strict=True):
            kind, metrics = answer or ("", None)
            backend.view.update(metrics)
            if metrics is None:
                backend.silent_until_s = now_s + SILENT_S
            elif self._settings.engine == "auto":
                backend.engine = kind

    def _choose(self, session: LiveSession, tried: set[int]) -> int:
        usable = [index for index in self.healthy if index not in tried]
        if not usable:
            raise ApiProblem(
                503, "no backend is available", code="no_backend", retry_after_s=PROBE_S
            )
        chosen = self.policy.route(session.state, self.views, self._clock.now_s())
        if not 0 <= chosen < len(self.backends):
            raise PolicyError(f"routing chose replica {chosen} of {len(self.backends)}")
        if chosen not in usable:
            chosen = least_loaded(self.views, usable)
            if isinstance(self.policy, StickyLeastLoaded):
                self.policy.bind(session.session, chosen)
        return chosen

    def _eject_if_failing(self, backend: Backend, why: str) -> None:
        if not backend.healthy or backend.failures < self._settings.max_ejection_failures:
            return
        backend.healthy = False
        backend.ejections += 1
        hold_s = self._settings.timeouts.health_s * 2.0 ** (backend.ejections - 1)
        backend.hold_until_s = self._clock.now_s() + min(hold_s, MAX_HOLD_S)
        backend.view.update(None)
        logger.warning("backend %d is ejected: %s", backend.index, why)

    async def _probe(self, backend: Backend) -> str:
        """Empty if the backend is well, else what is wrong."""
        try:
            status, _ = await fetch(backend, "/health")
            if status == 404:  # not every OpenAI-compatible server has /health
                status, _ = await fetch(backend, "/v1/models")
        except (aiohttp.ClientError, TimeoutError) as error:
            return type(error).__name__
        return f"health check answers {status}" if status >= 500 else ""

    async def _metrics(self, backend: Backend) -> tuple[str, ServerMetrics] | None:
        try:
            status, page = await fetch(backend, "/metrics")
        except (aiohttp.ClientError, TimeoutError):
            return None
        return read_metrics(page) if status == 200 else None


async def fetch(
    backend: Backend, path: str, headers: Sequence[tuple[str, str]] = ()
) -> tuple[int, bytes]:
    """GET a page of a backend, cut at MAX_PAGE_BYTES."""
    async with backend.line.client.get(
        backend.url + path, timeout=PROBE_TIMEOUT, headers=headers, allow_redirects=False
    ) as answer:
        return answer.status, await answer.content.read(MAX_PAGE_BYTES)

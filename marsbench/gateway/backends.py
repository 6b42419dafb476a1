"""The engines behind a gateway: which are healthy, what they say about themselves, who goes where."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp

from marsbench.admission.base import RoutingPolicy
from marsbench.errors import PolicyError
from marsbench.gateway.bus import WallClock
from marsbench.gateway.problems import ApiProblem
from marsbench.gateway.routing import StickyLeastLoaded, least_loaded
from marsbench.gateway.sessions import LiveSession
from marsbench.gateway.settings import GatewaySettings
from marsbench.gateway.telemetry import EngineMetrics, ReplicaView, read_metrics

logger = logging.getLogger(__name__)

PROBE_S = 2.0
PROBE_TIMEOUT = aiohttp.ClientTimeout(total=PROBE_S)
MAX_PAGE_BYTES = 8 << 20


@dataclass(slots=True)
class Backend:
    """One engine."""

    index: int
    url: str
    client: aiohttp.ClientSession
    view: ReplicaView
    is_vllm: bool = False
    healthy: bool = True
    failures: int = 0
    """In a row."""
    ejections: int = 0


class Pool:
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
        """The backend for a turn; ApiProblem (503) if all are ejected."""
        return self._choose(session, set())

    def reroute(self, session: LiveSession, tried: set[int]) -> int | None:
        """Another backend for a turn that could not be sent to those ``tried``."""
        if set(self.healthy) <= tried:
            return None
        return self._choose(session, tried)

    def failed(self, index: int, why: str) -> None:
        """A backend did not answer, or with a server error."""
        backend = self.backends[index]
        backend.failures += 1
        if backend.healthy and backend.failures >= self._settings.max_ejection_failures:
            self._eject(backend, why)

    def succeeded(self, index: int) -> None:
        """A backend answered."""
        self.backends[index].failures = 0

    async def check(self) -> None:
        """One health check of every backend; brings ejected ones back."""
        for backend in self.backends:
            why = await self._probe(backend)
            if why:
                backend.failures += 1
                if backend.healthy and backend.failures >= self._settings.max_ejection_failures:
                    self._eject(backend, why)
            elif not backend.healthy:
                backend.healthy = True
                backend.failures = 0
                logger.warning("backend %d is back", backend.index)

    async def read_telemetry(self) -> None:
        """One reading of every healthy backend's /metrics."""
        for backend in self.backends:
            if not backend.healthy or self._settings.engine == "openai":
                continue
            metrics = await self._metrics(backend)
            backend.view.update(metrics)
            if metrics is not None and self._settings.engine == "auto":
                backend.is_vllm = metrics.is_vllm

    def _choose(self, session: LiveSession, tried: set[int]) -> int:
        usable = [index for index in self.healthy if index not in tried]
        if not usable:
            raise ApiProblem(
                503, "no backend is available", code="no_backend", retry_after_s=PROBE_S
            )
        chosen = self.policy.route(session, self.views, self._clock.now_s())
        if not 0 <= chosen < len(self.backends):
            raise PolicyError(f"routing chose replica {chosen} of {len(self.backends)}")
        if chosen not in usable:
            chosen = least_loaded(self.views, usable)
            if isinstance(self.policy, StickyLeastLoaded):
                self.policy.bind(session.session, chosen)
        return chosen

    def _eject(self, backend: Backend, why: str) -> None:
        backend.healthy = False
        backend.ejections += 1
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

    async def _metrics(self, backend: Backend) -> EngineMetrics | None:
        try:
            status, page = await fetch(backend, "/metrics")
        except (aiohttp.ClientError, TimeoutError):
            return None
        return read_metrics(page.decode("utf-8", "replace")) if status == 200 else None


async def fetch(
    backend: Backend, path: str, headers: Sequence[tuple[str, str]] = ()
) -> tuple[int, bytes]:
    """GET a page of a backend, cut at MAX_PAGE_BYTES."""
    async with backend.client.get(
        backend.url + path, timeout=PROBE_TIMEOUT, headers=headers, allow_redirects=False
    ) as answer:
        return answer.status, await answer.content.read(MAX_PAGE_BYTES)

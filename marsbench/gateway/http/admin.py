"""The endpoints of operators: health, metrics, and the sessions of all clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from marsbench.events import Status
from marsbench.gateway.problems import ApiProblem, error_body

if TYPE_CHECKING:
    from marsbench.gateway.app import Gateway
    from marsbench.gateway.control.sessions import LiveSession

JSON = "application/json"
MOST_LISTED = 1000


class Operations:
    """GET /health, /ready, /metrics, /v1/admin/sessions; POST /v1/admin/sessions/<number>/end."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def health(self, request: Request) -> Response:
        """Answer that the process lives."""
        return Response(b'{"status":"ok"}', media_type=JSON)

    async def ready(self, request: Request) -> Response:
        """Answer whether turns are taken: the gateway does not drain, and a backend is healthy."""
        gateway = self._gateway
        if gateway.guard.draining:
            return Response(error_body(503, "draining"), 503, media_type=JSON)
        if not gateway.pool.healthy:
            return Response(error_body(503, "no backend is healthy"), 503, media_type=JSON)
        return Response(b'{"status":"ready"}', media_type=JSON)

    async def metrics(self, request: Request) -> Response:
        """Answer with all metrics."""
        page = self._gateway.meters.page()
        return Response(page, media_type="text/plain; version=0.0.4")

    async def sessions(self, request: Request) -> Response:
        """Answer with the unfinished sessions, the longest silent first."""
        now_s = self._gateway.clock.now_s()
        found = sorted(
            self._gateway.control.table.sessions.values(), key=lambda session: session.seen_ps
        )
        listed = [_told(session, now_s) for session in found[:MOST_LISTED]]
        content = {"sessions": listed, "total": len(found)}
        return Response(msgspec.json.encode(content), media_type=JSON)

    async def end(self, request: Request) -> Response:
        """End a session, whoever's it is; a turn of it that is in flight is cancelled."""
        gateway = self._gateway
        session = gateway.control.table.sessions.get(request.path_params["number"])
        if session is None:
            raise ApiProblem(404, "no unfinished session has this number", code="no_session")
        await gateway.desk.cancel(session)
        gateway.control.end(session, Status.ERROR)
        content = {"number": session.session, "session_id": session.session_id, "ended": True}
        return Response(msgspec.json.encode(content), media_type=JSON)


def _told(session: LiveSession, now_s: float) -> dict[str, Any]:
    """What an operator sees of a session: no text, and no key."""
    return {
        "number": session.session,
        "session_id": session.session_id,
        "tenant": session.tenant,
        "phase": session.phase,
        "phase_s": round(now_s - session.state.phase_since_s, 3),
        "turns": session.turns_before + session.turns_sent,
        "context_tokens": session.state.context_tokens,
        "backend": session.backend,
        "open_calls": [call.name for call in session.open_calls()],
        "lent": session.lent,
        "parent": None if session.parent is None else session.parent.session,
    }

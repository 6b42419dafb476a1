"""Any OpenAI-compatible server at an address: nothing is known of it beyond the API."""

from __future__ import annotations

from typing import Any

from marsbench.engine.live.kinds.base import Launch
from marsbench.engine.live.metrics import MetricNames
from marsbench.engine.live.request import CompletionRequest
from marsbench.engine.live.server import ServerCommand
from marsbench.errors import EngineError


class OpenAi:
    """A ``ServerKind`` that is never started here."""

    name = "openai"
    package = ""
    metrics: MetricNames | None = None
    hosts_policies = False

    def fields(self, request: CompletionRequest) -> dict[str, Any]:
        """Return no field, since a server may refuse what it does not know."""
        return {}

    def command(self, launch: Launch) -> ServerCommand:
        """Raise EngineError, since there is nothing that marsbench could start."""
        raise EngineError("engine openai needs an address: -c engine.params.url=http://HOST:PORT")

    def check_log(self, launch: Launch, log: str) -> None:
        """Do nothing: the server is not ours, and we have no log of it."""

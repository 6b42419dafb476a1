"""What the endpoints of agents need: the HTTP side of a gateway, wherever its control plane runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from marsbench.gateway.backends.lines import BackendLine
from marsbench.gateway.backends.proxy import Proxy
from marsbench.gateway.control.bus import WallClock
from marsbench.gateway.control.desk import Desk
from marsbench.gateway.http.guard import Guard
from marsbench.gateway.http.limits import BodyBudget
from marsbench.gateway.settings import GatewaySettings


class HttpSide(Protocol):
    """A gateway, or one of its workers."""

    @property
    def settings(self) -> GatewaySettings: ...
    @property
    def clock(self) -> WallClock: ...
    @property
    def bodies(self) -> BodyBudget: ...
    @property
    def guard(self) -> Guard: ...
    @property
    def desk(self) -> Desk: ...
    @property
    def proxy(self) -> Proxy: ...
    @property
    def lines(self) -> Sequence[BackendLine]: ...

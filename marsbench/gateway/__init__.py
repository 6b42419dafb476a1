"""The gateway: an OpenAI-compatible proxy in which a system's control plane runs on a wall clock."""

from __future__ import annotations

from marsbench.gateway.settings import GatewaySettings, Limits, Timeouts

__all__ = ["GatewaySettings", "Limits", "Timeouts"]

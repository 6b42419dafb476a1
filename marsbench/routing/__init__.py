"""Routers by name: who gets a turn where several engines stand behind one front door."""

from __future__ import annotations

from marsbench.core import PolicyContext
from marsbench.registry import load, table, unknown
from marsbench.routing.base import RoutingPolicy

ROUTERS: dict[str, str] = {
    "round-robin": "marsbench.routing.round_robin.RoundRobin",
    "least-loaded": "marsbench.routing.least_loaded.LeastLoaded",
    "session-hash": "marsbench.routing.session_hash.SessionHash",
    "session-affinity": "marsbench.routing.session_affinity.StickySession",
}
"""Name -> dotted path of a class that is made of a ``PolicyContext``."""


def router_paths() -> dict[str, str]:
    """All routers: those above, then those of plug-in packages (their table ROUTERS)."""
    return {**ROUTERS, **table("ROUTERS")}


def make_router(name: str, context: PolicyContext) -> RoutingPolicy:
    """The router of this name; ConfigError with the closest names if there is none."""
    paths = router_paths()
    if name not in paths and "." not in name:
        raise unknown("router", name, paths)
    made: RoutingPolicy = load("ROUTERS", paths.get(name, name))(context)
    return made

"""Drivers by name: what makes the sessions of a cell act. A new driver is one line here.

``replay`` plays recorded sessions against the engine itself. A driver of live agents stands between
the agents and the engine instead, and is run in the same way: it is an ``engine.plan.Engine`` too.
"""

from __future__ import annotations

DRIVERS: dict[str, str] = {
    "replay": "marsbench.drivers.replay.Replaying",
    "openhands": "marsbench.agents.driving.LiveAgents",
}
"""Name -> dotted path of a ``drivers.base.Driver`` class."""

"""MARS as systems: the full one and its ablations, each a set of parameters."""

from __future__ import annotations

from mars_impl.scheduler import Mars
from marsbench.core import PolicyContext
from marsbench.system import Policies, System


def build(context: PolicyContext) -> Policies:
    """One Mars object in every role."""
    mars = Mars(context)
    return Policies(scheduling=mars, retention=mars, admission=mars, tools=mars)


MARS = System(
    "mars", "MARS in full (arXiv:2604.26963): control plane, coordinator, retention", build
)

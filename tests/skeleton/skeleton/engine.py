"""An engine: a core in virtual time, here the simulator's own under another name."""

from __future__ import annotations

from marsbench.engine.kind import VirtualTime
from marsbench.engine.sim.core import SimCore


class SkeletonCore(SimCore):
    """Whatever has the methods of ``marsbench.engine.base.EngineCore`` is a core."""


ENGINE = VirtualTime("the simulator under another name", core="skeleton.engine.SkeletonCore")

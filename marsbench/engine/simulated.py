"""Engine ``sim``: the simulated core whose rules a system's flags ask for."""

from __future__ import annotations

from marsbench.engine.base import CoreListener, EngineConfig
from marsbench.engine.cost import StepCost
from marsbench.engine.sim.core import SimCore
from marsbench.engine.sim_sglang.core import RadixCore
from marsbench.errors import EngineError
from marsbench.system import Policies

RULES: dict[str, type[SimCore | RadixCore]] = {"vllm": SimCore, "sglang": RadixCore}
"""``EngineConfig.rules`` -> the core that has them."""


def simulated(
    config: EngineConfig, cost: StepCost, policies: Policies, listener: CoreListener
) -> SimCore | RadixCore:
    """Make the core of one run (an ``engine.virtual.CoreFactory``)."""
    core = RULES.get(config.rules)
    if core is None:
        raise EngineError(f"rules {config.rules!r}: engine sim has those of {' and '.join(RULES)}")
    return core(config, cost, policies, listener)

"""Engines by name: who executes turns, and in which time."""

ENGINES: dict[str, str] = {
    "sim": "marsbench.engine.sim.core.SimCore",
    "vllm-core": "marsbench.engine.vllm.core.VllmCore",
}
"""Virtual-time engines: name -> dotted path of an EngineCore class with the constructor
``(config: EngineConfig, cost: StepCost, policies: Policies, listener: CoreListener)``."""

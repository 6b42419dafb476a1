"""Engines by name: who executes turns, and in which time."""

ENGINES: dict[str, str] = {
    "sim": "marsbench.engine.sim.core.SimCore",
    "vllm-core": "marsbench.engine.vllm.core.VllmCore",
}
"""Virtual-time engines: name -> dotted path of an EngineCore class with the constructor
``(config: EngineConfig, cost: StepCost, policies: Policies, listener: CoreListener)``."""

LIVE_ENGINES: dict[str, str] = {
    "vllm": "marsbench.engine.live.core.LiveCore",
    "openai": "marsbench.engine.live.core.LiveCore",
}
"""Real servers on the wall clock: name -> dotted path of a core with the same constructor, run by
``marsbench.engine.live.engine.LiveEngine.run_cell`` instead of the virtual-time driver."""

LIVE_SUMMARIES: dict[str, str] = {
    "vllm": "A real vLLM server on the wall clock: started with the profile's flags, or at a URL.",
    "openai": "Any OpenAI-compatible server at a URL, on the wall clock.",
}
"""One line about each live engine."""

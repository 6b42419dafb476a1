"""Engines by name: who executes turns, and in which time. A new engine is one line here."""

from __future__ import annotations

from marsbench.engine.kind import EngineKind, ServerEngine, VirtualTime
from marsbench.registry import load, table, unknown

ENGINES: dict[str, EngineKind] = {
    "sim": VirtualTime(
        "A model of vLLM's scheduler and KV cache, or SGLang's, jumping from event to event.",
        core="marsbench.engine.simulated.simulated",
        has_replicas=True,
    ),
    "vllm-core": VirtualTime(
        "vLLM's own Scheduler and KVCacheManager in virtual time, with modelled step times.",
        core="marsbench.engine.vllm.core.VllmCore",
        package="vllm",
        has_replicas=True,
    ),
    "sglang-core": VirtualTime(
        "SGLang's own Scheduler and radix cache in virtual time, with modelled step times.",
        core="marsbench.engine.sglang.core.SglangCore",
        package="sglang",
        defaults={"block_size": 1},  # SGLang's own page size
        ideal_engine="sim",  # alone in an engine there is nothing to schedule
    ),
    "vllm": ServerEngine(
        "A real vLLM server on the wall clock: started with the profile's flags, or at a URL.",
        server="marsbench.engine.live.kinds.vllm.Vllm",
    ),
    "sglang": ServerEngine(
        "A real SGLang server on the wall clock: started with the profile's flags, or at a URL.",
        server="marsbench.engine.live.kinds.sglang.Sglang",
        defaults={"block_size": 1},
    ),
    "openai": ServerEngine(
        "Any OpenAI-compatible server at a URL, on the wall clock.",
        server="marsbench.engine.live.kinds.openai.OpenAi",
    ),
}


def engine_names() -> list[str]:
    """All engines: those above, then those of plug-in packages (their table ENGINES)."""
    return list(dict.fromkeys([*ENGINES, *table("ENGINES")]))


def engine_kind(name: str) -> EngineKind:
    """The engine of this name; ConfigError with the closest names if there is none."""
    if name in ENGINES:
        return ENGINES[name]
    if name not in table("ENGINES"):
        raise unknown("engine", name, engine_names())
    kind: EngineKind = load("ENGINES", name)
    return kind

"""What of SGLang the simulator does not model: one line that says so, and what does."""

from __future__ import annotations

from marsbench.engine.base import EngineConfig
from marsbench.engine.sglang.flags import check as check_flags
from marsbench.errors import EngineError

INSTEAD = "run it with --engine sglang-core, which has all of SGLang"
ORDERS = ("fcfs", "lpm", "hrrn", "shortest-prefill-first")
EVICTIONS = ("lru", "lfu", "slru", "priority", "tlru")
RETRACTIONS = ("length", "priority")
QUEUES = ("fcfs", "priority")


def check(config: EngineConfig) -> None:
    """Raise an EngineError for flags without a model."""
    check_flags(config, "sim")
    for name, known in (
        ("policy", QUEUES),
        ("schedule_policy", ORDERS),
        ("radix_eviction_policy", EVICTIONS),
        ("retraction_policy", RETRACTIONS),
    ):
        value = getattr(config, name)
        if value not in known:
            raise EngineError(
                f"engine sim: SGLang's {name} {value} is not modelled ({', '.join(known)} are): "
                f"{INSTEAD}"
            )
    if config.policy == "priority" and config.schedule_policy != "fcfs":
        raise EngineError(
            f"engine sim: SGLang's priorities go with schedule_policy fcfs, not {config.schedule_policy}"
        )
    if config.enable_session_radix_cache:
        raise EngineError(f"engine sim: SGLang's session radix cache is not modelled: {INSTEAD}")
    if config.schedule_policy == "shortest-prefill-first" and not config.enable_prefix_caching:
        raise EngineError("engine sim: SGLang's shortest-prefill-first needs enable_prefix_caching")

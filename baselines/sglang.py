"""Stock SGLang and what it can be told to do for agents with flags alone.

Engine: SGLang 0.5.23 (facts in its scheduler source). ``sglang`` is the default configuration:
requests in order of arrival, prefill before decode in chunks, one radix tree of which the least
recently used leaves are dropped, retraction of the shortest answers when memory runs out. The
others change one thing each: the order of its queue (``-lpm`` longest cached prefix, ``-hrrn``
highest response ratio, ``-spf`` least left to prefill), its priorities (``-priority``: the client
sends the session's arrival, an older session goes first and takes seats), what leaves the tree
first (``-tlru``, arXiv:2510.15152), and whether it knows which sessions still live
(``-session-radix``; the client says when one ends). Nothing is reproduced here, the engine does
all of it: SGLang itself on engines ``sglang-core`` and ``sglang``, its rules on ``sim``.
"""

from __future__ import annotations

from marsbench.system import System

ENGINES = ("sglang-core", "sglang", "sim")
"""Where these flags mean something."""
RULES: dict[str, int | str] = {"rules": "sglang", "block_size": 1}
"""What ``sim`` has to be told: whose rules, and SGLang's own page size."""

SGLANG = System(
    name="sglang",
    summary="stock SGLang: FCFS, radix cache with LRU leaves",
    engines=ENGINES,
    engine=RULES,
    tunable={
        # not shortest-prefill-first, under which SGLang can run out of memory and stop
        "schedule_policy": ("fcfs", "lpm", "hrrn"),
        "prefill_decode_interval": (0, 4, 16),
        "max_num_batched_tokens": (2048, 8192),
        "radix_eviction_policy": ("lru", "tlru"),
    },
    limits={"max_num_batched_tokens": (512, 32_768)},
)


def _with(name: str, summary: str, **engine: str | bool) -> System:
    """SGLang with some of its flags set."""
    return System(name=name, summary=summary, engines=ENGINES, engine={**RULES, **engine})


SGLANG_LPM = _with(
    "sglang-lpm",
    "SGLang with --schedule-policy lpm: longest cached prefix first",
    schedule_policy="lpm",
)
SGLANG_HRRN = _with(
    "sglang-hrrn",
    "SGLang with --schedule-policy hrrn: highest response ratio next",
    schedule_policy="hrrn",
)
SGLANG_SPF = _with(
    "sglang-spf",
    "SGLang with --schedule-policy shortest-prefill-first: least left to prefill first",
    schedule_policy="shortest-prefill-first",
)
SGLANG_TLRU = _with(
    "sglang-tlru",
    "SGLang with --radix-eviction-policy tlru: what cannot affect tail TTFT leaves first",
    radix_eviction_policy="tlru",
)
SGLANG_SESSION_RADIX = System(
    name="sglang-session-radix",
    summary="SGLang with --enable-session-radix-cache: KV of ended sessions leaves first",
    engines=ENGINES[:1],
    engine={"enable_session_radix_cache": True},
)
SGLANG_PRIORITY = System(
    name="sglang-priority",
    summary="SGLang with --enable-priority-scheduling; older sessions first",
    engines=ENGINES,
    engine={**RULES, "policy": "priority", "retraction_policy": "priority"},
    priority="session_arrival",
)

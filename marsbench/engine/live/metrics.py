"""Reads the counters and gauges of a vLLM server's ``/metrics`` page.

Only the lines needed are looked at: the page has thousands, is read twice a second, and the event
loop that parses it also sends requests on time (a full parser holds it for tens of milliseconds).
"""

from __future__ import annotations

import re
from typing import NamedTuple

LINE = re.compile(rb"^vllm:(\w+?)(?:\{(.*)\})? ([0-9.eE+-]+|NaN|[+-]?Inf)$", re.MULTILINE)
LABEL = re.compile(rb'(\w+)="((?:[^"\\]|\\.)*)"')

SUMMED = {
    b"num_requests_running": "running",
    b"num_requests_waiting": "waiting",
    b"prefix_cache_queries_total": "queried_tokens",
    b"prefix_cache_hits_total": "hit_tokens",
    b"num_preemptions_total": "preemptions",
    b"prompt_tokens_total": "prompt_tokens",
    b"generation_tokens_total": "generated_tokens",
    b"iteration_tokens_total_count": "steps",
}


class ServerMetrics(NamedTuple):
    """What a server says about itself; sums over its engines (data parallel ranks)."""

    running: int = 0
    waiting: int = 0
    queried_tokens: int = 0
    """Prompt tokens looked up in the prefix cache, preempted turns again at each resumption."""
    hit_tokens: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    kv_usage: float = 0.0
    """Share of KV blocks held by running turns, 0..1; mean over engines."""
    num_blocks: int = 0
    """KV blocks that can hold tokens (vLLM's null block not counted)."""
    block_size: int = 0

    def since(self, before: ServerMetrics) -> ServerMetrics:
        """Counters as differences; gauges and sizes as they are now."""
        return self._replace(
            queried_tokens=self.queried_tokens - before.queried_tokens,
            hit_tokens=self.hit_tokens - before.hit_tokens,
            preemptions=self.preemptions - before.preemptions,
            prompt_tokens=self.prompt_tokens - before.prompt_tokens,
            generated_tokens=self.generated_tokens - before.generated_tokens,
            steps=self.steps - before.steps,
        )


def parse_metrics(page: bytes) -> ServerMetrics | None:
    """The metrics of a page; None if it is not a vLLM server's."""
    sums: dict[str, int] = {}
    usage: list[float] = []
    num_blocks = block_size = 0
    for name, labels, value in LINE.findall(page):
        if name in SUMMED:
            field = SUMMED[name]
            sums[field] = sums.get(field, 0) + int(float(value))
        elif name == b"kv_cache_usage_perc":
            usage.append(float(value))
        elif name == b"cache_config_info":
            config = dict(LABEL.findall(labels))
            if config.get(b"num_gpu_blocks", b"").isdigit():
                num_blocks += int(config[b"num_gpu_blocks"]) - 1
            block_size = int(config.get(b"block_size", b"0"))
    if not usage:
        return None
    return ServerMetrics(
        **sums, kv_usage=sum(usage) / len(usage), num_blocks=num_blocks, block_size=block_size
    )

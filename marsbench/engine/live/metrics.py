"""Reads the counters and gauges of a server's ``/metrics`` page.

Only the lines needed are looked at: the page has thousands, is read twice a second, and the event
loop that parses it also sends requests on time (a full parser holds it for tens of milliseconds).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

LABEL = re.compile(rb'(\w+)="((?:[^"\\]|\\.)*)"')


class MetricNames(NamedTuple):
    """What one kind of server calls its metrics. Names are without the prefix."""

    prefix: bytes
    """Before the colon of each name."""
    summed: Mapping[bytes, str]
    """Name -> field of ``ServerMetrics``, summed over the engines of a server."""
    usage: tuple[bytes, ...]
    """Names of the share of KV blocks in use. Before the first request a page may have none of them."""
    alike: Mapping[bytes, str] = {}
    """Name -> field of ``ServerMetrics``, for what is the same in all engines of a server."""
    sizes: bytes = b""
    """Metric whose labels tell the sizes of the KV cache; empty where metrics of their own do."""
    num_blocks: bytes = b""
    """Label of the number of blocks."""
    block_size: bytes = b""
    unusable_blocks: int = 0
    """Blocks among them that never hold tokens."""


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
    """KV blocks that can hold tokens (one that never does is not counted)."""
    block_size: int = 0

    def since(self, before: ServerMetrics) -> ServerMetrics:
        """Return counters as differences to an earlier reading; gauges and sizes stay as they are
        now.
        """
        return self._replace(
            queried_tokens=self.queried_tokens - before.queried_tokens,
            hit_tokens=self.hit_tokens - before.hit_tokens,
            preemptions=self.preemptions - before.preemptions,
            prompt_tokens=self.prompt_tokens - before.prompt_tokens,
            generated_tokens=self.generated_tokens - before.generated_tokens,
            steps=self.steps - before.steps,
        )


def parse_metrics(page: bytes, names: MetricNames) -> ServerMetrics | None:
    """Return the metrics of a page, or None if it does not come from the kind of server with these
    names.
    """
    sums: dict[str, int] = {}
    usage: list[float] = []
    num_blocks = block_size = 0
    alike: dict[str, int] = {}
    for name, labels, value in _lines(names.prefix).findall(page):
        if name in names.summed:
            field = names.summed[name]
            sums[field] = sums.get(field, 0) + int(float(value))
        elif name in names.alike:
            alike[names.alike[name]] = int(float(value))
        elif name in names.usage:
            usage.append(float(value))
        elif name == names.sizes:
            config = dict(LABEL.findall(labels))
            if config.get(names.num_blocks, b"").isdigit():
                num_blocks += int(config[names.num_blocks]) - names.unusable_blocks
            block_size = int(config.get(names.block_size, b"0"))
    if not (usage or sums or alike):
        return None
    found = {"num_blocks": num_blocks, "block_size": block_size, **sums, **alike}
    return ServerMetrics(kv_usage=sum(usage) / max(len(usage), 1), **found)


@cache
def _lines(prefix: bytes) -> re.Pattern[bytes]:
    line = rb"^" + prefix + rb":(\w+?)(?:\{(.*)\})? ([0-9.eE+-]+|NaN|[+-]?Inf)$"
    return re.compile(line, re.MULTILINE)

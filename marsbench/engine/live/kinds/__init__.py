"""Kinds of servers, and one reader for the metrics page of any of them."""

from __future__ import annotations

from marsbench.engine.live.kinds.base import ServerKind
from marsbench.engine.live.kinds.openai import OpenAi
from marsbench.engine.live.kinds.sglang import Sglang
from marsbench.engine.live.kinds.vllm import Vllm
from marsbench.engine.live.metrics import ServerMetrics, parse_metrics

KINDS: tuple[ServerKind, ...] = (Vllm(), Sglang(), OpenAi())


def read_metrics(page: bytes) -> tuple[ServerKind, ServerMetrics] | None:
    """Find out which kind of server a ``/metrics`` page is of, and read it; None if it is no known
    server's.
    """
    for kind in KINDS:
        if kind.metrics is not None:
            found = parse_metrics(page, kind.metrics)
            if found is not None:
                return kind, found
    return None

"""What the plug-in counts, on SGLang's own ``/metrics`` page."""

from __future__ import annotations

from typing import Any

from marsbench.events import Unpin


class Counters:
    """Prometheus metrics of one scheduler; they count for nobody where SGLang has no metrics.

    NOTE: prometheus_client may be imported only now: it looks at its first import whether several
    processes share a page, and SGLang sets that up at its start.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._metrics: dict[str, Any] = {}
        self._held = -1
        if not enabled:
            return
        from prometheus_client import Counter, Gauge

        self._metrics = {
            "pinned": Counter("marsbench:pins", "Contexts of finished turns that were kept."),
            "unpinned": Counter("marsbench:unpins", "Kept contexts given up.", ["reason"]),
            "retracted": Counter("marsbench:retractions", "Running turns that lost their memory."),
            "ended": Counter("marsbench:turns", "Turns that left the engine.", ["how"]),
            "held": Gauge(
                "marsbench:pinned_blocks",
                "KV blocks held by kept contexts alone.",
                multiprocess_mode="mostrecent",
            ),
        }

    def pinned(self) -> None:
        """Count a context that is kept."""
        if self._metrics:
            self._metrics["pinned"].inc()

    def unpinned(self, reason: Unpin) -> None:
        """Count a kept context that was given up."""
        if self._metrics:
            self._metrics["unpinned"].labels(reason.name.lower()).inc()

    def retracted(self) -> None:
        """Count a running turn that lost its memory."""
        if self._metrics:
            self._metrics["retracted"].inc()

    def ended(self, *, aborted: bool) -> None:
        """Count a turn that left the engine."""
        if self._metrics:
            self._metrics["ended"].labels("aborted" if aborted else "finished").inc()

    def holds(self, blocks: int) -> None:
        """Set how many blocks are held by kept contexts alone."""
        if self._metrics and blocks != self._held:
            self._held = blocks
            self._metrics["held"].set(blocks)

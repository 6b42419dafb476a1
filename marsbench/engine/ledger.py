"""What is counted of the turns in another project's scheduler, and told to the listener.

A core that drives vLLM's or SGLang's scheduler says here that a turn was admitted, preempted or
finished; what that means for hits, recomputed tokens and the records is the same for each.
"""

from __future__ import annotations

from typing import Any

from marsbench.engine.base import CoreListener, CoreStats, Request, StepTrace


class TurnRecord:
    """A turn inside the engine: the driver's request, the engine's own, and what was counted."""

    __slots__ = (
        "admitted",
        "cached",
        "lost",
        "native",
        "output",
        "prefill_end",
        "prefilled",
        "recomputed",
        "request",
    )

    def __init__(self, request: Request, native: Any, output: list[int]) -> None:
        self.request = request
        self.native = native
        self.output = output
        """The tokens that the model will answer."""
        self.admitted = False
        """It holds memory: not waiting, neither at first nor after a preemption."""
        self.cached = -1
        """Prefix hit when first admitted, tokens; -1 before."""
        self.lost = 0
        """Computed tokens at the last preemption."""
        self.prefill_end = 0
        """Tokens it had to have computed when it was last admitted."""
        self.prefilled = 0
        self.recomputed = 0


class Ledger:
    """The turns of one core, by the engine's request id."""

    def __init__(self, listener: CoreListener, stats: CoreStats, block_size: int) -> None:
        self.records: dict[str, TurnRecord] = {}
        self.preempted: list[tuple[int, int]] = []
        """(session, turn) of each preemption in this step; whoever begins a step clears it."""
        self._listener = listener
        self._stats = stats
        self._block_size = block_size
        self._accounted_ps = 0

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: str) -> TurnRecord:
        return self.records[key]

    def add(self, key: str, request: Request, native: Any, output: list[int]) -> TurnRecord:
        """Open the record of a turn that has been submitted."""
        record = self.records[key] = TurnRecord(request, native, output)
        return record

    def admitted(self, key: str, at_ps: int, cached: int, num_tokens: int) -> None:
        """Note that a waiting turn got memory for ``num_tokens``, of which ``cached`` need no
        computing.
        """
        record = self.records[key]
        request = record.request
        record.admitted = True
        record.prefill_end = num_tokens
        if record.cached < 0:
            record.cached = cached
            size = self._block_size
            had = (request.reused_tokens - 1) // size * size if request.turn_index else 0
            tell = self._listener.on_scheduled_first
        else:
            had = record.lost
            tell = self._listener.on_resumed
        record.recomputed += max(0, had - cached)
        tell(request, at_ps, cached, num_tokens - cached)

    def lose(self, key: str, at_ps: int, computed_tokens: int, blocks: int) -> None:
        """Note that a running turn was preempted, which held so many computed tokens and blocks. It
        waits again.
        """
        record = self.records[key]
        record.admitted = False
        record.lost = computed_tokens
        self._stats.preemptions += 1
        self.preempted.append((record.request.session, record.request.turn_index))
        self._listener.on_preempted(record.request, at_ps, computed_tokens, blocks)

    def finish(self, key: str, at_ps: int) -> None:
        """Close the record of a turn that made its last token."""
        record = self.records.pop(key)
        self._listener.on_finished(
            record.request,
            at_ps,
            prefilled=record.prefilled,
            recomputed=record.recomputed,
            cached=record.cached,
        )

    def account(self, blocks: int, until_ps: int) -> None:
        """Add up the use of memory: ``blocks`` have been referenced from the last call until
        ``until_ps``.
        """
        if until_ps > self._accounted_ps:
            self._stats.referenced_block_ps += blocks * (until_ps - self._accounted_ps)
            self._accounted_ps = until_ps

    def report(
        self, trace: StepTrace, at_ps: int, scheduled: list[tuple[TurnRecord, int]], free: int
    ) -> None:
        """Show a step to whoever compares engines step by step."""
        turns = [(record.request.session, record.request.turn_index, n) for record, n in scheduled]
        trace.step(self._stats.steps, at_ps, turns, list(self.preempted), free)

"""What the main process gives a worker at its start."""

from __future__ import annotations

from dataclasses import dataclass

from marsbench.gateway.settings import GatewaySettings


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """What a worker is told at its start; descriptors are inherited."""

    settings: GatewaySettings
    number: int
    """From 1; the main process is 0."""
    log_format: str
    channel: int
    listener: int
    counts: int
    last_word: int
    """A pipe with one byte: who gets it says that the main process has died."""

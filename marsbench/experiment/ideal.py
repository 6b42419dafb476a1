"""Ideal latency: the same session alone on an empty system, on the same engine and profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from marsbench.core import Session
from marsbench.experiment.memo import Memo, session_digest

CHUNK = 25
"""Sessions per task when the work is spread over processes."""

Measure = Callable[[Sequence[Sequence[Session]]], Sequence[Sequence[float | None]]]
"""Chunks of sessions to their latencies alone, seconds; None where a session cannot run."""


def ideal_latencies_s(
    sessions: Sequence[Session], *, memo: Memo, inputs: Mapping[str, Any], measure: Measure
) -> dict[str, float | None]:
    """Session id -> ideal latency. Sessions with equal content are measured once.

    ``inputs`` names everything else the result depends on; what was measured before with the
    same inputs is remembered per content.
    """
    digests = {session.session_id: session_digest(session) for session in sessions}
    known: dict[str, float | None] = memo.get("ideal", inputs) or {}
    fresh = {digests[s.session_id]: s for s in sessions if digests[s.session_id] not in known}
    todo = list(fresh.items())
    chunks = [todo[start : start + CHUNK] for start in range(0, len(todo), CHUNK)]
    results = measure([[session for _, session in chunk] for chunk in chunks])
    for chunk, latencies in zip(chunks, results, strict=True):
        known |= {key: value for (key, _), value in zip(chunk, latencies, strict=True)}
    if todo:
        memo.put("ideal", inputs, known)
    return {session_id: known[key] for session_id, key in digests.items()}

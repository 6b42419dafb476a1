"""Importer of applied_compute_agentic rows: one session a row, arrays by turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from marsbench.core import Session, ToolCall, Turn
from marsbench.trace.importer import TraceSample
from workloads.rows import Row, RowSource, has_keys, read_rows, recognise

_ARRAYS = ("assistant_response_length", "tool_call_output_length", "tool_call_latency")


class Trie:
    """Reads one row after the other."""

    name = "trie"
    summary = "applied_compute_agentic rows (trie, Dynamo replay)"
    provenance: Mapping[str, str] = {
        "new_input_tokens": "recorded: input_prompt_length, then tool_call_output_length",
        "output_tokens": "recorded",
        "resent_output": "assumed: 1.0",
        "tools.name": "assumed: one unnamed call a turn",
        "tools.class": "assumed: shell_other",
        "tools.wall_s": "recorded: tool_call_latency",
        "tools.result_tokens": "recorded",
    }

    def sniff(self, sample: TraceSample) -> bool:
        return recognise(sample, self.matches)

    def matches(self, value: Any) -> bool:
        """Tell whether a decoded row is of this format."""
        return has_keys(value, "input_prompt_length", *_ARRAYS)

    def read(self, path: Path) -> Iterator[Session]:
        return self.sessions(lambda: read_rows(path))

    def sessions(self, rows: RowSource) -> Iterator[Session]:
        for number, row in enumerate(rows()):
            yield _session(row, f"row-{number}")


def _session(row: Row, session_id: str) -> Session:
    outputs, results, waits = (row.items(name) for name in _ARRAYS)
    count = row.integer("num_turns", len(outputs))
    if not count == len(outputs) == len(results) == len(waits):
        raise row.error(
            f"num_turns is {count}, but the arrays hold {len(outputs)}, {len(results)} "
            f"and {len(waits)} values",
            "num_turns",
        )
    fresh = row.integer("input_prompt_length")
    turns: list[Turn] = []
    for output, result, wait in zip(outputs, results, waits, strict=True):
        values = Row({"output": output, "result": result, "wait": wait}, row.path, row.line)
        tool = ToolCall(
            name="tool",
            tool_class="shell_other",
            wall_s=float(values.number("wait")),
            result_tokens=values.integer("result"),
        )
        turns.append(Turn(fresh, max(1, values.integer("output")), tools=(tool,)))
        fresh = values.integer("result")
    final = row.integer("final_assistant_response_length", 0)
    if final or not turns:
        turns.append(Turn(fresh, max(1, final)))
    return Session(session_id, tuple(turns))


IMPORTER = Trie()

"""Hugging Face datasets of rows in known formats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from marsbench.errors import TraceError
from marsbench.trace import io
from marsbench.trace.importer import TraceSample
from workloads.huggingface.importer import IMPORTER, find_format
from workloads.rows import Row
from workloads.tracelab.importer import IMPORTER as TRACELAB
from workloads.weka.importer import IMPORTER as WEKA


@pytest.fixture(scope="module")
def datasets():
    module = pytest.importorskip("datasets")
    module.disable_progress_bars()
    return module


def rounds(formats):
    tool = {"tool_index": 0, "tool_name": "Read", "tool_wall_latency_ms": 40.0, "result_chars": 34}
    return [
        formats.tracelab_row("a", 0, 500, 20, tools=[tool]),
        formats.tracelab_row("a", 1, 600, 20),
        formats.tracelab_row("b", 0, 700, 20, tools=[tool]),
    ]


def test_parquet_and_saved_datasets_read_like_the_files(datasets, formats, tmp_path):
    """Rows in a parquet file or a saved dataset give the sessions of the JSONL file."""
    rows = rounds(formats)
    (tmp_path / "rounds.jsonl").write_text(formats.jsonl(rows))
    expected = list(TRACELAB.read(tmp_path / "rounds.jsonl"))
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(str(tmp_path / "train-00000.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "parquet").mkdir()
    table.to_parquet(str(tmp_path / "parquet" / "train-00000.parquet"))
    for path in ("train-00000.parquet", "saved", "parquet"):
        assert IMPORTER.sniff(io.sample(tmp_path / path))
        assert list(IMPORTER.read(tmp_path / path)) == expected


def test_fields_that_a_table_fills_with_null_are_absent(datasets, formats, tmp_path):
    """A table gives each row all columns: requests and sub-agents of Weka keep their own."""
    child = {
        "type": "subagent", "t": 5.0, "agent_id": "x", "duration_ms": 1000, "tool_tokens": 5,
        "system_tokens": 5, "requests": [formats.weka_request(320, 9, [7, 8, 9, 10, 11])],
    }  # fmt: skip
    requests = [formats.weka_request(640, 10, list(range(10))), child]
    traces = [formats.weka_trace("a", requests)]
    (tmp_path / "traces.jsonl").write_text(formats.jsonl(traces))
    datasets.Dataset.from_list(traces).to_parquet(str(tmp_path / "traces.parquet"))
    sessions = list(IMPORTER.read(tmp_path / "traces.parquet"))
    assert sessions == list(WEKA.read(tmp_path / "traces.jsonl"))
    assert len(sessions[0].turns[0].children) == 1


def test_message_lists(datasets, formats, tmp_path):
    """Rows with chat messages, also as JSON text; runs of one instance are kept apart."""
    messages = json.dumps(formats.swe_agent_history(2))
    rows = [{"instance_id": "org__repo-1", "messages": messages, "model": "m"}] * 2
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "x.parquet"))
    first, second = IMPORTER.read(tmp_path / "x.parquet")
    assert first.session_id != second.session_id
    assert (len(first.turns), first.model) == (2, "m")


def test_hub_names_are_recognised():
    """hf:OWNER/NAME needs no file."""
    assert IMPORTER.sniff(TraceSample(Path("hf:owner/name"), b""))


@pytest.mark.parametrize(
    "name", ["tracelab", "weka", "mooncake", "agentic_mooncake", "trie", "swe_agent"]
)
def test_each_row_format_is_found(formats, tmp_path, name):
    """The first row decides."""
    from marsbench.trace.source import find_importer
    from workloads.rows import read_rows

    row = next(read_rows(formats.writers[name](tmp_path)))
    assert find_format(row) is find_importer(name)


def test_unknown_rows_are_an_error():
    """Columns and known formats are listed."""
    with pytest.raises(TraceError, match=r"columns a, b .*tracelab"):
        find_format(Row({"a": 1, "b": 2}, "x", 1))


def test_a_damaged_table_is_an_error(datasets, tmp_path):
    """The file is named in one line."""
    (tmp_path / "x.parquet").write_bytes(b"PAR1" + b"\0" * 40)
    with pytest.raises(TraceError, match=r"x\.parquet: the dataset cannot be read"):
        list(IMPORTER.read(tmp_path / "x.parquet"))

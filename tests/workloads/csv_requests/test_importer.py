"""Requests as CSV: known headers, and columns that a user names."""

from __future__ import annotations

import io
import json

import pytest
from typer.testing import CliRunner

from marsbench.cli.trace import app
from marsbench.core import Session, ToolCall, Turn, plan_turns
from marsbench.errors import ConfigError, TraceError
from marsbench.trace.export import export
from marsbench.trace.faults import Faults
from marsbench.trace.source import open_trace
from workloads.csv_requests.importer import IMPORTER


def write(tmp_path, *lines):
    path = tmp_path / "requests.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_azure_rows_are_sessions_of_one_turn(formats):
    """Dates with seven digits of a second become seconds from the first request."""
    importer, sessions = open_trace(formats.fixtures / "azure.csv")
    found = list(sessions)
    assert importer is IMPORTER
    assert [len(s.turns) for s in found] == [1, 1, 1]
    assert [s.arrival_s for s in found] == pytest.approx([0, 4.314579, 4.541877], abs=1e-5)
    assert (found[0].turns[0].new_input_tokens, found[0].turns[0].output_tokens) == (374, 44)


def test_burstgpt_sessions_are_put_together(formats):
    """The newer release names sessions; the time between requests holds the first one's service."""
    first, second = IMPORTER.read(formats.fixtures / "burstgpt.csv")
    assert [turn.think_s for turn in first.turns] == [113.0, 0.0]
    assert (first.model, second.arrival_s) == ("ChatGPT", 40.0)


def test_our_export_for_tracelab_comes_back(tmp_path):
    """What ``trace export --format tracelab-csv`` writes is read: prompts, outputs, waits, arrivals."""
    turns = (Turn(100, 10, tools=(ToolCall("Bash", "test", 2.5),)), Turn(50, 5))
    written = io.BytesIO()
    export([Session("a", turns, arrival_s=3.0)], written, "tracelab-csv")
    path = tmp_path / "rounds.csv"
    path.write_bytes(written.getvalue())
    (session,) = open_trace(path)[1]
    assert [p.prompt_tokens for p in plan_turns(session)] == [100, 160]
    assert [t.wall_s for t in session.turns[0].tools] == [2.5]
    assert session.turns[0].think_s == 0.0


def test_any_columns_can_be_mapped(tmp_path):
    """--map names what columns stand for; new_tokens add to what the session has."""
    path = write(tmp_path, "who,when,add,out,wait", "x,10,100,20,1.5", "y,11,40,5,0", "x,20,30,7,0")
    mapped = {
        "who": "session_id", "when": "time", "add": "new_tokens", "out": "output_tokens",
        "wait": "tool_s",
    }  # fmt: skip
    options = [word for column, field in mapped.items() for word in ("--map", f"{column}={field}")]
    done = CliRunner().invoke(app, ["import", str(path), *options])
    assert done.exit_code == 0, done.output
    x, y = (json.loads(line) for line in done.stdout.splitlines())
    assert [turn["new_input_tokens"] for turn in x["turns"]] == [100, 30]
    assert x["turns"][0]["tools"][0]["wall_s"] == 1.5
    assert y["arrival_s"] == 1.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a=inputtokens"], "--map a=inputtokens: unknown field 'inputtokens'; did you mean"),
        (["b=input_tokens"], "--map b=...: unknown column 'b'"),
        (["a"], "--map a: expected COLUMN=FIELD"),
        (["a=time"], "no column stands for input_tokens or new_tokens"),
        (["a=time", "a=model"], "column 'a' is given twice"),
    ],
)
def test_a_wrong_map_is_one_line(tmp_path, given, message):
    """A field or column that is not there is named with the closest one."""
    path = write(tmp_path, "a,out", "1,2")
    options = [word for text in given for word in ("--map", text)]
    done = CliRunner().invoke(app, ["import", str(path), *options])
    assert isinstance(done.exception, ConfigError)
    assert message in str(done.exception)


def test_only_tables_have_columns(tmp_path):
    """--map for a format without columns is refused, not passed over."""
    path = write(tmp_path, "a,out", "1,2")
    with pytest.raises(ConfigError, match="format 'weka' has no columns"):
        open_trace(path, "weka", columns={"a": "input_tokens"})


def test_an_unknown_header_asks_for_a_map(tmp_path):
    """Without a map the columns are listed, with what they could stand for."""
    path = write(tmp_path, "a,out", "1,2")
    with pytest.raises(TraceError, match=r"requests\.csv:1: columns a, out: .*--map COLUMN=FIELD"):
        list(IMPORTER.read(path))


def test_faulty_cells_are_named_or_tolerated(tmp_path):
    """A cell that is no number has a line; a negative one can be repaired, the others skipped."""
    path = write(
        tmp_path,
        "Timestamp,Model,Request tokens,Response tokens,Session ID",
        "0,m,100,5,a", "1,m,many,5,b", "2,m,100,-5,c", "3,m,0,5,d",
    )  # fmt: skip
    with pytest.raises(TraceError, match=r":3: input_tokens: expected a number, found 'many'"):
        list(IMPORTER.read(path))
    for mode, ids, left_out in (("skip", ["a"], 3), ("repair", ["a", "c"], 2)):
        faults = Faults(mode)
        found = [s.session_id for s in open_trace(path, None, faults)[1]]
        assert (found, faults.counts()["left_out"]) == (ids, left_out)

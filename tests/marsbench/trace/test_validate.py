"""The validator: all problems of a file, each with its line, in bounded memory."""

from __future__ import annotations

import hashlib
import json

import pytest

from marsbench.errors import TraceError
from marsbench.trace.schema import encode_session
from marsbench.trace.validate import Problem, validate


def test_a_good_trace_is_counted(write, session):
    """A clean file has no problems and the totals of its turns and calls."""
    report = validate(write([session("a"), session("b")]))
    assert report.ok
    assert (report.num_sessions, report.num_turns, report.num_tool_calls) == (2, 4, 2)


def test_line_40001_is_named(tmp_path, session):
    """A wrong type far into a file is reported with its line and field, and counting goes on."""
    path = tmp_path / "t.jsonl"
    line = encode_session(session("s-NUMBER"))
    lines = [line.replace(b"NUMBER", b"%d" % i) for i in range(40_010)]
    lines[40_000] = lines[40_000].replace(b'"wall_s":1.0', b'"wall_s":"1.0"')
    path.write_bytes(b"\n".join(lines))
    report = validate(path)
    expected = 'expected `float`, got `str`, found "1.0" (seconds, a finite number >= 0)'
    assert report.problems == (Problem(40_001, "turns[0].tools[0].wall_s", expected),)
    assert report.num_sessions == 40_009
    assert str(report.problems[0]) == f"line 40001: turns[0].tools[0].wall_s: {expected}"


def test_problems_are_limited_but_counted(tmp_path, session):
    """Only the first ones are kept; doubled ids are found too."""
    path = tmp_path / "t.jsonl"
    path.write_bytes((encode_session(session("a")) + b"\n") * 50)
    report = validate(path, max_problems=3)
    assert (report.num_problems, len(report.problems), report.num_sessions) == (49, 3, 1)
    assert report.problems[0].line == 2
    assert json.loads(json.dumps(report.to_json()))["ok"] is False


def test_a_cut_file_is_a_problem(write, session):
    """Truncated compression is reported at the line where it stops; cut to nothing, at once."""
    names = (hashlib.sha256(b"%d" % i).hexdigest() for i in range(5000))
    path = write([session(name) for name in names], "t.jsonl.zst")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    report = validate(path)
    (problem,) = report.problems
    assert "zstd data end too early" in problem.problem
    assert problem.line == report.num_sessions + 1
    path.write_bytes(data[:10])
    with pytest.raises(TraceError, match="zstd data end too early"):
        validate(path)


def test_other_formats_report_the_importers_error(plugin, tmp_path):
    """A file of another format is read through its importer; ids are checked there too."""
    path = tmp_path / "t"
    path.write_text("solo\nsolo\n")
    report = validate(path)
    assert report.format == "solo"
    assert [p.field for p in report.problems] == ["session_id"]

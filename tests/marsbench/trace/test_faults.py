"""Traces with faults: stop at the first, go on without it, or repair it, and say so."""

from __future__ import annotations

import gzip
import json

import pytest

from marsbench.errors import ConfigError, TraceError
from marsbench.trace.faults import Faults
from marsbench.trace.schema import encode_session
from marsbench.trace.source import open_trace
from marsbench.trace.validate import validate


def round_row(session, index, **tool):
    """A TraceLab row with one tool call."""
    call = {"tool_name": "Bash", "tool_wall_latency_ms": 500, "result_chars": 34, **tool}
    return {
        "session_id": session, "round_index": index, "input_tokens_total": 500 + 100 * index,
        "output_tokens": 20, "tools": [call],
    }  # fmt: skip


@pytest.fixture
def skewed(tmp_path):
    """Three sessions of two rounds; in one row of the second a clock has gone back."""
    path = tmp_path / "rounds.jsonl"
    rows = [round_row(name, index) for name in "abc" for index in (0, 1)]
    rows[2] = round_row("b", 0, tool_wall_latency_ms=-3000)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path, mode, format_name=None):
    """(ids of the sessions read, what was left out, what was repaired)."""
    faults = Faults(mode)
    _, sessions = open_trace(path, format_name, faults)
    ids = [session.session_id for session in sessions]
    return ids, faults.counts()["left_out"], faults.counts()["repaired"]


def test_fail_stops_and_says_how_to_go_on(skewed):
    """By default the first fault ends the reading, with its place and the way out."""
    with pytest.raises(TraceError, match=r"rounds\.jsonl:3: .*found -3000; .*--on-error repair"):
        read(skewed, "fail")


def test_skip_leaves_out_the_session_and_no_other(skewed):
    """A session with a fault is left out whole: half a session would be another one."""
    assert read(skewed, "skip") == (["a", "c"], 1, 0)


def test_repair_counts_the_number_as_zero(skewed):
    """A time below zero becomes zero, and the session stays."""
    assert read(skewed, "repair") == (["a", "b", "c"], 0, 1)
    faults = Faults("repair")
    sessions = list(open_trace(skewed, None, faults)[1])
    assert [call.wall_s for call in sessions[1].turns[0].tools] == [0.0]
    assert "tool_wall_latency_ms: -3000" in faults.summary()
    assert "rounds.jsonl:3" in faults.summary()


def test_repair_leaves_out_what_stays_wrong(skewed):
    """What is no number cannot be repaired, so its session is left out."""
    rows = skewed.read_text().splitlines()
    rows[4] = json.dumps(round_row("c", 0, tool_wall_latency_ms="soon"))
    skewed.write_text("\n".join(rows) + "\n")
    assert read(skewed, "repair") == (["a", "b"], 1, 1)


def test_a_line_that_is_no_json_is_left_out_alone(skewed):
    """A broken line names no session, so only the line goes."""
    skewed.write_text(skewed.read_text() + '{"session_id": \n')
    assert read(skewed, "repair") == (["a", "b", "c"], 1, 1)


def test_a_file_cut_short_gives_the_sessions_before_the_cut(write, session, tmp_path):
    """Of a damaged file the readable lines are used, and the damage is counted once."""
    whole = b"".join(encode_session(session(f"s{i}")) + b"\n" for i in range(2000))
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(gzip.compress(whole)[:-200])
    ids, left_out, _ = read(path, "skip")
    assert 0 < len(ids) < 2000
    assert left_out == 1


def test_canonical_lines_are_skipped_or_repaired(tmp_path, session):
    """In the canonical format, too: a negative time is repaired, another fault left out."""
    good = encode_session(session("a")).decode()
    late = good.replace('"a"', '"late"').replace('"wall_s":1.0', '"wall_s":-0.5')
    wrong = good.replace('"a"', '"wrong"').replace('"output_tokens":10', '"output_tokens":0')
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join([good, late, wrong, good, good.replace('"a"', '"b"')]))
    assert read(path, "skip") == (["a", "b"], 3, 0)
    assert read(path, "repair") == (["a", "late", "b"], 2, 1)


def test_one_bad_file_of_a_directory_is_named_and_left_out(tmp_path):
    """The other files of a directory are read; ``validate`` names the bad one."""
    for name in "abcd":
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(round_row(name, 0)) + "\n")
    (tmp_path / "e.jsonl").write_text("no trace at all")
    assert read(tmp_path, "skip") == (["a", "b", "c", "d"], 1, 0)
    with pytest.raises(TraceError, match=r"e\.jsonl:1: not JSON"):
        read(tmp_path, "fail")
    report = validate(tmp_path)
    assert (report.num_sessions, report.num_problems) == (4, 1)
    assert str(report.problems[0]).startswith(f"{tmp_path / 'e.jsonl'}, line 1: not JSON or JSONL")


def test_a_second_format_is_never_passed_over(tmp_path, write, session):
    """A directory of two formats is an error that names the file, or goes on without and says so."""
    for name in "abcd":
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(round_row(name, 0)) + "\n")
    write([session("z")], "z.jsonl")
    with pytest.raises(TraceError, match=r"z\.jsonl: holds canonical, the directory tracelab"):
        read(tmp_path, "fail")
    assert read(tmp_path, "skip") == (["a", "b", "c", "d"], 1, 0)


def test_several_bad_sessions_are_each_left_out(tmp_path):
    """The reading goes on after each fault, however many there are."""
    path = tmp_path / "rounds.jsonl"
    rows = [round_row(f"s{i}", 0, tool_wall_latency_ms=-1 if i % 2 else 1) for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(path, "skip") == ([f"s{i}" for i in range(0, 20, 2)], 10, 0)


def test_the_consumer_reads_strictly_between_sessions(skewed, tmp_path):
    """A tolerant reading does not make another one tolerant that its consumer begins meanwhile."""
    other = tmp_path / "other.jsonl"
    other.write_text(skewed.read_text())
    _, sessions = open_trace(skewed, None, Faults("skip"))
    next(sessions)
    with pytest.raises(TraceError, match=r"other\.jsonl:3"):
        list(open_trace(other)[1])


def test_an_unknown_mode_names_the_closest():
    """--on-error has three modes."""
    with pytest.raises(ConfigError, match="unknown --on-error mode 'skipp'; did you mean 'skip'"):
        Faults("skipp")


def test_a_missing_path_stops_every_mode(tmp_path):
    """Nothing to read is no fault of a row."""
    with pytest.raises(TraceError, match="no such file"):
        read(tmp_path / "none.jsonl", "skip")
    with pytest.raises(TraceError, match=r"no \.json, \.jsonl, \.traj file below it"):
        read(tmp_path, "skip", "tracelab")

"""``marsbench trace``: data on stdout, talk on stderr, errors as MarsbenchError."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from marsbench.cli.trace import app
from marsbench.errors import ConfigError, TraceError
from marsbench.trace import io


def run(*args, code=0):
    result = CliRunner().invoke(app, [str(a) for a in args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def test_synth_is_repeatable_and_carries_provenance(plugin, tmp_path):
    """The same seed gives the same file; stats then says how its numbers are known."""
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        result = run("synth", "made", "--sessions", 3, "--seed", 5, "--out", path)
        assert "3 sessions of made, seed 5" in result.stderr
        assert result.stdout == ""
    assert paths[0].read_bytes() == paths[1].read_bytes()
    stats = json.loads(run("stats", paths[0], "--json").stdout)
    assert stats["provenance"]["output_tokens"] == "assumed: 1"
    assert stats["sessions"] == 3


def test_import_writes_canonical_to_stdout(plugin, tmp_path):
    """Any known format becomes canonical lines, nothing else on stdout."""
    path = tmp_path / "t"
    path.write_text("solo1\nsolo2\n")
    result = run("import", path)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["session_id"] for line in lines] == ["solo1", "solo2"]
    assert lines[0]["x_provenance"] == {"output_tokens": "recorded"}
    assert "format solo" in result.stderr


def test_an_import_without_sessions_leaves_no_file(plugin, tmp_path):
    """An empty result is an error, and no empty trace is left behind."""
    path = tmp_path / "t"
    path.write_text("")
    with pytest.raises(TraceError, match="has no sessions"):
        run("import", path, "--format", "solo", "--out", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_stats_tables_and_distances(write, session):
    """People get tables, programs JSON; --against adds distances."""
    path = write([session("a"), session("b")])
    text = run("stats", path).stdout
    assert "Provenance" in text
    assert "tool_wall_s[test]" in text
    assert "output_tokens" in run("stats", path, "--against", path).stdout
    found = json.loads(run("stats", path, "--against", path, "--json").stdout)
    assert {d["ks"] for d in found["distances"]} == {0.0}


def test_stats_of_a_generated_workload(plugin, write, session):
    """A workload name stands for its sessions on either side."""
    found = json.loads(run("stats", "made", "--sessions", 7, "--json").stdout)
    assert found["sessions"] == 7
    assert "KS" in run("stats", write([session()]), "--against", "made").stdout


def test_validate_exits_1_with_problems(write, session):
    """Problems go to stdout line by line, the verdict to stderr."""
    good = write([session("a")])
    assert "ok (canonical, 1 good sessions, 2 turns, 1 tool calls)" in run("validate", good).stderr
    bad = write([session("a"), session("a")])
    result = run("validate", bad, code=1)
    assert result.stdout.startswith("line 2: session_id: 'a' stands earlier")
    assert json.loads(run("validate", bad, "--json", code=1).stdout)["num_problems"] == 1


def test_export_says_what_is_lost(write, session, tmp_path):
    """Rows on stdout or in a file, one line of losses on stderr."""
    path = write([session("a")])
    result = run("export", path, "--format", "trie")
    assert json.loads(result.stdout)["num_turns"] == 1
    assert result.stderr == "lost in trie: 1 tool calls lose name, class and CPU demand\n"
    out = tmp_path / "t.jsonl.gz"
    run("export", path, "--format", "agentic-mooncake", "--block-size", 64, "--out", out)
    assert len(list(io.read_lines(out))) == 2
    packed = tmp_path / "t.jsonl.zst"
    run("export", path, "--format", "trie", "--out", packed)
    assert json.loads(next(io.read_lines(packed))[1])["num_turns"] == 1
    with pytest.raises(ConfigError, match="unknown export format 'tri'"):
        run("export", path, "--format", "tri")


def test_faults_are_said_and_counted(write, session, tmp_path):
    """--on-error goes for import, stats, export and scale; stats count what it did."""
    path = write([session("a"), session("b", turns=[(1, 1)])])
    path.write_text(path.read_text().replace('"wall_s":1.0', '"wall_s":-1.0'))
    with pytest.raises(TraceError, match="wall_s"):
        run("import", path)
    skipped = run("import", path, "--on-error", "skip")
    assert [json.loads(line)["session_id"] for line in skipped.stdout.splitlines()] == ["b"]
    assert "left out 1 (first: " in skipped.stderr
    found = json.loads(run("stats", path, "--on-error", "repair", "--json").stdout)
    assert (found["sessions"], found["left_out"], found["repaired"]) == (2, 0, 1)
    for command in (["export", path, "--format", "trie"], ["scale", path]):
        result = run(*command, "--on-error", "repair")
        assert "read 1 negative numbers as 0" in result.stderr
        assert len(result.stdout.splitlines()) == 2


def test_fetch_lists_and_copies(tmp_path):
    """Without a name the catalogue is printed; with one, the path of the checked file."""
    assert "tracelab\tCC-BY-4.0" in run("fetch").stdout
    assert {row["name"] for row in json.loads(run("fetch", "--json").stdout)} >= {
        "tracelab",
        "weka",
    }
    copy = tmp_path / "copy.jsonl"
    copy.write_text('{"timestamp": 0}\n')
    result = run("fetch", "mooncake-synthetic", "--out", tmp_path / "t", "--mirror", copy)
    assert result.stdout.strip() == str(tmp_path / "t" / "synthetic_trace.jsonl")
    assert "Apache-2.0" in result.stderr

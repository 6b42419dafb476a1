"""Finding formats by content, and workloads by name or path."""

from __future__ import annotations

import hashlib

import pytest

from marsbench.errors import ConfigError, TraceError
from marsbench.trace import source


def test_canonical_is_recognised_by_content(write, session):
    """The version key makes a file canonical, whatever its name; provenance comes along."""
    path = write([session()], "anything.dat", {"x_provenance": {"tools.wall_s": "recorded"}})
    importer, sessions = source.open_trace(path)
    assert importer.name == "canonical"
    assert importer.provenance == {"tools.wall_s": "recorded"}
    assert list(sessions) == [session()]


def test_provenance_of_a_line_longer_than_the_head(write, session):
    """A first line beyond 64 KiB is still recognised: its keys stand before the turns."""
    path = write(
        [session(turns=[(1, 1)] * 3000)], extensions={"x_provenance": {"agent": "recorded"}}
    )
    importer, _ = source.open_trace(path)
    assert (importer.name, importer.provenance) == ("canonical", {"agent": "recorded"})


def test_formats_are_found_by_content_and_conflicts_named(plugin, tmp_path):
    """One fitting importer is taken; none or several are errors that list the names."""
    solo, twin, other = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    solo.write_text("solo1\nsolo2\n")
    twin.write_text("twin\n")
    other.write_text("something else entirely\n")
    importer, sessions = source.open_trace(solo)
    assert importer.name == "solo"
    assert [s.session_id for s in sessions] == ["solo1", "solo2"]
    with pytest.raises(
        TraceError, match=r"several formats \(twin_a, twin_b\); choose one with --fo"
    ):
        source.open_trace(twin)
    assert source.open_trace(twin, "twin_b")[0].name == "twin_b"
    with pytest.raises(TraceError, match=r"in no known format \(canonical, .*solo"):
        source.open_trace(other)
    with pytest.raises(ConfigError, match="unknown format 'twin_c'; did you mean 'twin_"):
        source.open_trace(twin, "twin_c")


@pytest.mark.parametrize(("content", "message"), [(b"", "is empty"), (b"\n \n", "is empty")])
def test_empty_inputs(tmp_path, content, message):
    """An empty file, an empty directory and a missing path each have their own line."""
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=message):
        source.open_trace(path)
    (tmp_path / "d").mkdir()
    with pytest.raises(TraceError, match="is an empty directory"):
        source.open_trace(tmp_path / "d")
    with pytest.raises(TraceError, match="no such file or directory"):
        source.open_trace(tmp_path / "none")


def test_a_directory_of_canonical_traces_names_one(tmp_path, write, session):
    """A canonical trace is one file: a directory of them is refused with what to give instead."""
    write([session("a")], "a.jsonl")
    (tmp_path / "notes.txt").write_text("no trace")
    with pytest.raises(TraceError, match=r"canonical traces; give one file, such as .*a\.jsonl"):
        source.open_trace(tmp_path)


def test_workload_by_name_path_or_neither(plugin, write, session):
    """Registered names and files open; a typo names the closest workload."""
    made = source.open_workload("made").sessions(2, seed=3)
    assert [s.session_id for s in made] == ["3/0", "3/1"]
    path = write([session()])
    recorded = source.open_workload(str(path))
    assert recorded.name == "trace"
    assert recorded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ConfigError, match=r"unknown workload 'maed'; did you mean 'made'\?"):
        source.open_workload("maed")
    with pytest.raises(ConfigError, match=r"workload 'x/y\.jsonl': no such file or directory"):
        source.open_workload("x/y.jsonl")


def test_a_misspelt_file_is_no_module(write, session, monkeypatch, tmp_path, plugin):
    """`trace.jsnol` is a slip of the pen, though the standard library has a module `trace`."""
    write([session()])
    monkeypatch.chdir(tmp_path)
    message = (
        r"workload 'trace\.jsnol': no such file, name or dotted path; did you mean 'trace\.jsonl'"
    )
    with pytest.raises(ConfigError, match=message):
        source.open_workload("trace.jsnol")
    with pytest.raises(ConfigError, match=r"'q\.w\.e': .*`marsbench list workloads` has the names"):
        source.open_workload("q.w.e")
    assert source.open_workload("made_up_plugin.Made").name == "made"
    with pytest.raises(ConfigError, match="cannot load workload 'marsbench"):
        source.open_workload("marsbench.trace.source.NOTHING")


def test_recorded_workload_shuffles_by_seed(write, session):
    """The same seed gives the same order, another seed another; nothing is lost."""
    workload = source.open_workload(str(write([session(f"s{i}") for i in range(20)])))
    ids = [s.session_id for s in workload.sessions(None, seed=1)]
    assert ids == [s.session_id for s in workload.sessions(None, seed=1)]
    assert ids != [s.session_id for s in workload.sessions(None, seed=2)]
    assert sorted(ids) == sorted(f"s{i}" for i in range(20))
    assert [s.session_id for s in workload.sessions(5, seed=1)] == ids[:5]


def test_recorded_workload_repeats_with_new_ids(write, session):
    """Asked for more than it has, a trace comes again as ID~2, ID~3, one trace length later.

    Arrivals 0 and 10: span 10 x 2/1 = 20 s, so the copies of "b" (10 s) come at 30 s and 50 s.
    """
    child = session("kid", turns=[(1, 1)])
    turn = session().turns[0]
    parent = session("b", arrival_s=10.0)
    from dataclasses import replace

    parent = replace(parent, turns=(replace(turn, children=(child,)),))
    workload = source.open_workload(str(write([session("a", arrival_s=0.0), parent])))
    chosen = {s.session_id: s for s in workload.sessions(5, seed=0)}
    assert len(chosen) == 5
    assert {"a", "b", "a~2", "b~2"} <= set(chosen)
    assert chosen["b~2"].arrival_s == 30.0
    assert chosen["b~2"].turns[0].children[0].session_id == "kid~2"
    assert chosen["b~2"].turns[0].output_tokens == 10


def test_splits_share_no_session(write, session):
    """Tuning and reporting are disjoint, complete, and decided by the id alone."""
    ids = [f"s{i}" for i in range(100)]
    workload = source.open_workload(str(write([session(i) for i in ids])))
    halves = [
        {s.session_id for s in workload.sessions(None, seed, split)}
        for seed, split in ((1, "tuning"), (2, "reporting"))
    ]
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == set(ids)
    assert 30 < len(halves[0]) < 70
    repeated = {s.session_id.split("~")[0] for s in workload.sessions(200, 3, "tuning")}
    assert repeated == halves[0]
    assert source.split_of("s0") == ("tuning" if "s0" in halves[0] else "reporting")


def test_recorded_workload_refuses_what_it_cannot_give(write, session, plugin, tmp_path):
    """No sessions asked for, an unknown split, an empty split and an empty trace are one line."""
    workload = source.open_workload(str(write([session("only")])))
    with pytest.raises(ConfigError, match="cannot take 0 sessions"):
        workload.sessions(0, 0)
    with pytest.raises(ConfigError, match="unknown split 'tunning'; did you mean 'tuning'"):
        workload.sessions(1, 0, "tunning")
    empty = "tuning" if source.split_of("only") == "reporting" else "reporting"
    with pytest.raises(ConfigError, match=f"no session falls in split '{empty}'"):
        workload.sessions(1, 0, empty)
    barren = tmp_path / "solo.txt"
    barren.write_text("\n")
    with pytest.raises(TraceError, match="has no sessions"):
        source.RecordedWorkload(_lines(tmp_path, ""), "solo").sessions(1, 0)


def _lines(tmp_path, text):
    path = tmp_path / "none.txt"
    path.write_text(text)
    return path


def test_real_traces_are_recognised(shared_data):
    """Each real fixture is claimed by exactly one format and has sessions."""
    found = {}
    for path in sorted((shared_data / "fixtures").rglob("*")):
        if path.is_file():
            importer, sessions = source.open_trace(path)
            assert next(sessions).turns, path
            found[path.parent.name] = importer.name
    assert found["weka"] == "weka"
    assert found["tracelab"] == "tracelab"

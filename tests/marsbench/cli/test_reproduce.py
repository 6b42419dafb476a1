"""``marsbench reproduce``: parts, page, what is not run and why, going on."""

from __future__ import annotations

import csv
import json

import pytest

from marsbench.cli import main
from marsbench.experiment import study as studies
from marsbench.experiment.study import PublishedStudy
from marsbench.report import write

GRID = "system: [vllm, static]\nload: 0.8\nsessions: 4\nseeds: 3\ntool_cores: 2\ncapacity: {sessions: 8}\n"

FIGURES = ("latency_vs_load",)
"""All of them take half a minute of a core to draw, and other tests draw them."""


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """cli(words) -> (status, stdout, stderr) with a study of four small parts."""
    turns = [{"new_input_tokens": 900, "output_tokens": 20, "tools": [
        {"name": "bash", "class": "script", "wall_s": 0.5}]}] * 3  # fmt: skip
    lines = [{"trace_version": 1, "session_id": f"s{k}", "turns": turns} for k in range(16)]
    trace = tmp_path / "small.jsonl"
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "main.yaml").write_text(f"workload: {trace}\n{GRID}")
    (tmp_path / "replay.yaml").write_text(GRID)
    (tmp_path / "search.yaml").write_text(
        f"workload: {trace}\nsystem: [vllm, static]\nsessions: 12\nseeds: 1\n"
        "sustain: {slo: mean slowdown <= 2, precision: 0.3}\n"
    )
    (tmp_path / "live.yaml").write_text(f"workload: {trace}\nengine: nowhere\n{GRID}")
    ranges = {"claim": "mean latency", "measure": "mean_s", "over": ["vllm"], "low": 0.5, "high": 2.0,
              "source": "section 5"}  # fmt: skip
    study = PublishedStudy.model_validate({
        "summary": "A study", "subject": "static", "folder": tmp_path,
        "parts": {
            "main": {"shows": "the grid", "experiment": "main.yaml"},
            "search": {"shows": "the rate", "experiment": "search.yaml"},
            "replay": {"shows": "a trace", "experiment": "replay.yaml", "trace": True},
            "live": {"shows": "a server", "experiment": "live.yaml", "optional": True},
        },
        "published": [{"part": "main", **ranges}, {"part": "replay", **ranges}],
    })  # fmt: skip
    monkeypatch.setattr(studies, "load_study", lambda name: study)
    monkeypatch.chdir(tmp_path)
    few = {name: module for name, module in write.figure_modules().items() if name in FIGURES}
    monkeypatch.setattr(write, "figure_modules", lambda: few)

    def call(words):
        with pytest.raises(SystemExit) as stopped:
            main(["reproduce", "--no-cache", "-q", "--out", "again", *words.split()])
        return stopped.value.code, *capsys.readouterr()

    return call


def test_a_page_beside_what_was_published(cli, tmp_path):
    """Every part that can be run is a run folder with report and tables; the page has the published
    range beside the measured factor and says what was not run. Parts that need a trace or a server
    that is not here are no failure.
    """
    code, out, err = cli("")
    assert code == 0, err
    assert out.splitlines()[0].split()[:2] == ["claim", "published"]
    assert "mean latency" in out
    assert "search: vllm sustains" in out
    assert "part replay: replays a recorded trace: give one with --trace" in err
    assert "part live: unknown engine 'nowhere'" in err
    page = (tmp_path / "again/reproduction.md").read_text()
    assert "| mean latency | section 5 | 0.5-2x | " in page
    assert "[report](main/report.html)" in page
    assert "**live** (a server): not run." in page
    assert (tmp_path / "again/main/report.html").is_file()
    assert (tmp_path / "again/main/tables/results.tex").is_file()
    with (tmp_path / "again/reproduction.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["published_low"]) == 0.5
    assert float(row["lowest"]) <= float(row["factor"]) <= float(row["highest"])
    before = (tmp_path / "again/main/summary.json").stat().st_mtime_ns
    code, again, _ = cli("--part main")
    assert code == 0
    assert again.splitlines()[1] == out.splitlines()[1]
    assert (tmp_path / "again/main/summary.json").stat().st_mtime_ns == before


def test_a_trace_is_replayed_and_a_named_part_must_run(cli, tmp_path):
    """--trace is the workload of the parts that ask for one; naming a part that cannot run is status 1."""
    code, _, err = cli("--part replay --trace small.jsonl --seeds 1")
    assert code == 0, err
    config = (tmp_path / "again/replay/config.yaml").read_text()
    assert "small.jsonl" in config
    assert "seeds: 1\n" in config
    code, _, err = cli("--part live")
    assert code == 1
    assert "not whole: live" in err


def test_parts_are_listed(cli):
    """--list says what the parts show and what was published of them, and runs nothing."""
    code, out, _ = cli("--list")
    assert code == 0
    assert "replay            a trace (needs --trace)" in out
    assert "mean latency: 0.5-2x; section 5" in out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--part mian", "unknown part 'mian'; did you mean 'main'"),
        ("--trace none.jsonl", "no such file"),
        ("--jobs many", "expected a number of processes"),
    ],
)
def test_mistakes_are_one_line(cli, words, line):
    """Status 2 and one line, before anything is run."""
    code, out, err = cli(words)
    assert (code, out) == (2, "")
    assert line in err
    assert len(err.splitlines()) == 1

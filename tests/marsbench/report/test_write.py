"""Figures and the HTML page, drawn from a small run."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from marsbench.cli import report as cli
from marsbench.errors import ResultsError
from marsbench.report.data import load_runs
from marsbench.report.figures import FIGURES
from marsbench.report.style import theme
from marsbench.report.write import figure_modules, question_of, write_report


@pytest.fixture(scope="module")
def run(make_run):
    factors = {"vllm": 3.0, "mars": 1.0, "mine": 2.0}
    return make_run(factors, loads=(0.3, 0.9), seeds=(0, 1), num_sessions=8, run_id="run-42")


@pytest.fixture(scope="module")
def written(run):
    return write_report([run])


def test_every_figure_answers_a_question():
    """A figure file opens with the question it answers."""
    modules = figure_modules()
    assert set(modules) == set(FIGURES)
    assert next(iter(modules)) == "latency_vs_load"
    for module in modules.values():
        assert question_of(module).endswith("?")


def test_all_figures_are_written_with_their_run(run, written):
    """Each figure is a PNG and a PDF whose metadata name the run."""
    names = {path.name for path in written.figures}
    assert names == {f"{name}.{kind}" for name in FIGURES for kind in ("png", "pdf")}
    for path in written.figures:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert image.width > 600
                assert "run-42" in image.text["Description"]
        else:
            assert b"run-42" in path.read_bytes()


def test_report_is_one_file_without_requests(run, written):
    """The page embeds its figures, names every system, and asks the network for nothing."""
    text = (run / "report.html").read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == len(FIGURES)
    assert not re.search(r"(src|href)=['\"]?(https?:)?//", text)
    assert "<script" not in text
    for system in ("mars", "vllm", "mine"):
        assert f">{system}</td>" in text
    assert "session_latency_s" in text


def test_lines_cover_all_systems_and_loads(run):
    """latency_vs_load draws a point per load for each system, at the mean over its seeds."""
    data = load_runs([run])
    with theme():
        figure = figure_modules()["latency_vs_load"].draw(data)
    containers = {bar.get_label(): bar for bar in figure.axes[0].containers}
    assert list(containers) == ["mars", "vllm", "mine"]
    x, y = containers["vllm"].lines[0].get_data()
    cells = data.cells[data.cells["system"] == "vllm"]
    assert list(x) == [0.3, 0.9]
    assert list(y) == cells.groupby("load")["session_latency_s.mean"].mean().tolist()


def test_breakdown_bars_add_up_to_the_mean_latency(run):
    """A system's stacked bar is as long as its mean session latency."""
    data = load_runs([run]).at(0.9)
    with theme():
        figure = figure_modules()["breakdown"].draw(data)
    bars = [patch for patch in figure.axes[0].patches if patch.get_width() > 0]
    ends = {}
    for bar in bars:
        ends[round(bar.get_y())] = bar.get_x() + bar.get_width()
    means = data.cells.groupby("system")["session_latency_s.mean"].mean()
    assert sorted(ends.values()) == pytest.approx(sorted(means))


def test_single_load_without_ideals_or_samples(make_run):
    """One load gives bars; figures whose data is missing are left out, not drawn empty."""
    run = make_run({"vllm": 3.0, "mars": 1.0}, num_sessions=4, run_id="single")
    data = load_runs([run])
    data.cells["slo_attainment.3"] = None
    with theme():
        assert figure_modules()["goodput_curve"].draw(data) is None
        assert figure_modules()["latency_vs_load"].draw(data).axes[0].patches
        assert figure_modules()["hit_rate_vs_load"].draw(data) is not None
        assert figure_modules()["latency_cdf"].draw(data) is not None


def test_command_prints_table_and_json(run, capsys):
    """stdout is data: a table, or JSON with --json."""
    cli.command([run], figures=False)
    assert "goodput@3" in capsys.readouterr().out
    cli.command([run], figures=False, as_json=True)
    content = json.loads(capsys.readouterr().out)
    assert content["run_ids"] == ["run-42"]
    assert len(content["rows"]) == 6


def test_unwritable_report_gives_one_line(run, tmp_path):
    """A file where the report folder should be is named."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResultsError, match=r"cannot write .*figures"):
        write_report([run], tmp_path / "file")

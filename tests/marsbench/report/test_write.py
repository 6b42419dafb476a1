"""Figures, drawn from a small run."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from marsbench.cli import report as cli
from marsbench.errors import ResultsError
from marsbench.report.chart import Bars, Dots
from marsbench.report.compare import HEADLINE, compare_systems
from marsbench.report.data import load_runs
from marsbench.report.figures import FIGURES
from marsbench.report.lanes import lanes, runs
from marsbench.report.plot import plot
from marsbench.report.style import theme
from marsbench.report.write import figure_modules, question_of, write_report


@pytest.fixture(scope="module")
def run(make_run):
    """Three systems at two loads, with a capacity search beside them."""
    factors = {"vllm": 3.0, "mars": 1.0, "mine": 2.0}
    path = make_run(factors, loads=(0.3, 0.9), seeds=(0, 1), num_sessions=8, run_id="run-42")
    searches = [
        {"system": system, "seed": seed, "best": 0.2 / factor, "failed": 0.21 / factor, "least": 0.01,
         "islands": [], "agents": 3.0, "sessions_per_s": 0.2 / factor, "sessions": 8,
         "tried": [{"value": 0.2 / factor, "cell": 0, "sustained": True, "unstable": False,
                    "failed": "", "bounds": {"p95 slowdown <= 3": 2.0 + seed}}]}
        for system, factor in factors.items() for seed in range(3)
    ]  # fmt: skip
    scenario = {"workload": "swe", "profile": "h100", "engine": "sim", "tool_cores": 16,
                "host_kv_gib": 0.0, "num_gpus": 1, "unit_per_s": 0.1, "drawn": 16, "distinct": 16,
                "searches": searches}  # fmt: skip
    document = {"capacity_version": 1, "run_id": "run-42", "complete": True, "loop": "open",
                "slo": "p95 slowdown <= 3", "scenarios": [scenario]}  # fmt: skip
    (path / "capacity.json").write_text(json.dumps(document))
    return path


@pytest.fixture(scope="module")
def written(run):
    return write_report([run])


def test_every_figure_answers_a_question():
    """A figure file opens with the question it answers."""
    modules = figure_modules()
    assert set(modules) == set(FIGURES)
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


def drawn(name, data):
    """A figure's chart and what matplotlib makes of it."""
    module = figure_modules()[name]
    chart = module.draw(data)
    with theme():
        return chart, plot(chart, question_of(module))


def test_a_figures_title_is_its_question(run):
    """A reader who finds the picture alone knows what it answers."""
    for name, module in figure_modules().items():
        _, figure = drawn(name, load_runs([run]))
        assert figure.get_suptitle().startswith(question_of(module)), name


def test_lines_cover_all_systems_and_loads(run):
    """latency_vs_load has a point per load for each system, at the mean over its seeds, with bars to the
    lowest and the highest seed.
    """
    data = load_runs([run])
    chart, figure = drawn("latency_vs_load", data)
    lines = {mark.name: mark for mark in chart.panels[0].marks}
    assert list(lines) == ["vllm", "mars", "mine"]
    cells = data.cells[data.cells["system"] == "vllm"].groupby("load")["session_latency_s.mean"]
    assert lines["vllm"].x == [0.3, 0.9]
    assert lines["vllm"].y == cells.mean().tolist()
    assert (lines["vllm"].low, lines["vllm"].high) == (cells.min().tolist(), cells.max().tolist())
    assert all(axes.get_ylim()[0] >= 0 for axes in figure.axes)


def test_capacities_are_bars_with_intervals_beside_what_was_tried(run):
    """A bar a system as long as its sustained rate, its interval around it, a point a cell and the
    bound; another scenario's cells show nothing of it, and a run without a search has no such figure.
    """
    data = load_runs([run])
    chart, _ = drawn("capacity", data)
    bars, tried = chart.panels
    assert list(bars.rows) == ["vllm", "mars", "mine"]
    lengths = [mark.lengths[0] for mark in bars.marks if isinstance(mark, Bars)]
    assert lengths == pytest.approx([3600 * 0.2 / f * np.sqrt(1.05) for f in (3, 1, 2)])
    dots = [mark for mark in bars.marks if isinstance(mark, Dots)]
    assert all(d.low[0] < length < d.high[0] for d, length in zip(dots, lengths, strict=True))
    assert [mark.y for mark in tried.marks[:-1]] == [[2.0, 3.0, 4.0]] * 3
    assert (tried.marks[-1].name, tried.marks[-1].at) == ("p95 slowdown <= 3", 3.0)
    module = figure_modules()["capacity"]
    assert module.draw(replace(data, cells=data.cells.assign(tool_cores=4))) is None
    assert module.draw(replace(data, searches=())) is None


def test_no_bar_reaches_below_the_lowest_seed(make_run):
    """Three seeds far apart: with a symmetric interval bars of latency and goodput would pass 0 and 1."""
    run = make_run({"vllm": 3.0, "mars": 1.0}, loads=(0.3, 0.9), seeds=(0, 1, 2), num_sessions=4,
                   run_id="apart")  # fmt: skip
    data = load_runs([run])
    seeds = data.cells["seed"].map({0: 0.01, 1: 0.5, 2: 1.0})
    data.cells["slo_attainment.3"] = seeds
    chart, _ = drawn("goodput_curve", data)
    for mark in chart.panels[1].marks:
        assert min(mark.low) >= 0
        assert max(mark.high) <= 1


def test_ratios_are_paired_and_unstable_ones_left_out(make_run):
    """The ratio figure shows each system against the baseline with the interval of ``compare``, and not
    where a side is unstable.
    """
    run = make_run({"vllm": 3.0, "mars": 1.0}, loads=(0.3, 0.9), seeds=(0, 1, 2), num_sessions=8,
                   run_id="ratios")  # fmt: skip
    data = load_runs([run])
    found = [e for e in compare_systems(data, "vllm") if e.statistic == "session_latency_s.mean"]
    chart, _ = drawn("paired_ratios", data)
    line = chart.panels[0].marks[0]
    assert (line.name, line.x) == ("mars", [0.3, 0.9])
    assert list(zip(line.y, line.low, line.high, strict=True)) == [
        (e.ratio, e.low, e.high) for e in found
    ]
    data.cells.loc[(data.cells["system"] == "vllm") & (data.cells["load"] == 0.9), "unstable"] = 1
    chart, _ = drawn("paired_ratios", data)
    assert chart.panels[0].marks[0].x == [0.3]


def test_breakdown_bars_add_up_to_the_mean_latency(run):
    """A system's stacked bar is as long as its mean session latency and ends before the frame."""
    data = load_runs([run]).at(0.9)
    chart, _ = drawn("breakdown", data)
    panel = chart.panels[0]
    means = data.cells.groupby("system")["session_latency_s.mean"].mean()
    for k, system in enumerate(panel.rows):
        assert sum(mark.lengths[k] for mark in panel.marks) == pytest.approx(means[system])
    assert panel.x_range[1] > means.max()


def test_all_kv_panels_share_the_longest_run(make_run):
    """Panels of runs of different length keep their whole time, on one axis."""
    run = make_run({"mars": 0.1, "vllm": 30.0, "mine": 1.0}, num_sessions=6, run_id="long")
    chart, figure = drawn("kv_timeline", load_runs([run]))
    ends = {panel.title: panel.marks[0].x[-1] for panel in chart.panels}
    assert ends["vllm"] > 1.2 * ends["mine"]
    for axes in figure.axes:
        assert axes.get_xlim()[1] >= max(ends.values())


def test_kv_layers_fill_the_memory(run):
    """Running, retained, evictable and free add up to all blocks at every moment."""
    chart, _ = drawn("kv_timeline", load_runs([run]))
    layers = chart.panels[0].marks[0].layers
    total = np.sum([values for values, _ in layers.values()], axis=0)
    assert total == pytest.approx(np.ones(len(total)), abs=1e-3)


def test_the_map_names_its_loads_and_doubts_what_chance_could_do(run):
    """Columns are the loads; a ratio whose interval includes 1 is in brackets, an unstable one is a word."""
    data = load_runs([run])
    data.cells.loc[(data.cells["system"] == "mine") & (data.cells["load"] == 0.9), "unstable"] = 1
    chart, figure = drawn("speedup_map", data)
    heat = chart.panels[0].marks[0]
    assert (heat.rows, heat.columns) == (["mars", "mine"], ["load 0.3", "load 0.9"])
    assert heat.texts[1][1] == "unstable"
    assert heat.values[1][1] == 1.0
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == heat.columns
    found = {(e.system, e.load): e for e in compare_systems(data) if e.statistic == HEADLINE}
    entry = found["mars", 0.3]
    bare = f"{entry.ratio:.2f}x"
    assert heat.texts[0][0] == (bare if entry.significant else f"({bare})")


def test_lanes_are_coarse_but_lose_no_time(run):
    """A lane's pieces cover the session from arrival to end, in steps, whatever it did in between."""
    data = load_runs([run])
    found = lanes(data, 4)
    assert len(found.sessions) == 4
    turns = found.turns["vllm"]
    one = turns[turns["session_id"] == found.sessions[1]]
    pieces = runs(one, found.components, 0.5)
    parts = one[[f"{name}_s" for name in found.components]].to_numpy()
    end = float((one["ready_s"].to_numpy() + parts.sum(axis=1)).max())
    assert pieces.starts[0] == one["ready_s"].iloc[0]
    assert pieces.starts[-1] + pieces.lengths[-1] == pytest.approx(end, abs=0.5)
    assert sum(pieces.lengths) == pytest.approx(parts.sum(), rel=0.1)
    assert len(pieces.starts) <= (end - pieces.starts[0]) / 0.5 + 1


def test_who_is_in_the_system_adds_up(run):
    """At the end nobody is in the system, and never more than have arrived."""
    chart, _ = drawn("pressure_timeline", load_runs([run]))
    for mark in chart.panels[0].marks:
        assert mark.y[-1] == 0
        assert 0 < max(mark.y) <= 8
        assert min(mark.y) >= 0


def test_single_load_without_ideals_or_samples(make_run):
    """One load gives a row a system; figures whose data is missing are left out, not drawn empty."""
    run = make_run({"vllm": 3.0, "mars": 1.0}, num_sessions=4, run_id="single")
    data = load_runs([run])
    data.cells["slo_attainment.3"] = None
    assert figure_modules()["goodput_curve"].draw(data) is None
    assert figure_modules()["latency_vs_load"].draw(data).panels[0].rows == ["vllm", "mars"]
    for name in ("latency_vs_load", "hit_rate_vs_load", "latency_cdf", "paired_ratios"):
        drawn(name, data)


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

"""The results table: numbers, order, and both ways of printing."""

from __future__ import annotations

import io

import pytest

from marsbench.report.data import load_runs
from marsbench.report.table import COLUMNS, fit, headings, print_table, report_rows, text_cells


@pytest.fixture(scope="module")
def data(make_run):
    factors = {"vllm": 3.0, "mars": 1.0}
    return load_runs([make_run(factors, loads=(0.3, 0.9), seeds=(0, 1), num_sessions=8)])


def test_one_row_per_load_and_system(data):
    """Rows ascend in load, systems in the order of the run; numbers are means over seeds."""
    rows = report_rows(data)
    assert [(row["load"], row["system"]) for row in rows] == [
        (0.3, "vllm"), (0.3, "mars"), (0.9, "vllm"), (0.9, "mars"),
    ]  # fmt: skip
    cells = data.cells
    mine = cells[(cells["system"] == "vllm") & (cells["load"] == 0.9)]
    assert rows[2]["session_latency_s.p95"] == pytest.approx(mine["session_latency_s.p95"].mean())
    assert rows[2]["session_latency_s.p95 low"] == mine["session_latency_s.p95"].min()
    assert rows[2]["session_latency_s.p95 high"] == mine["session_latency_s.p95"].max()
    assert (rows[2]["seeds"], rows[2]["distinct"]) == (2, 8)


def test_missing_numbers_print_as_a_dash(data):
    """A metric that could not be measured is '-', not nan."""
    row = report_rows(data)[0] | {"slo_attainment.3": None}
    assert text_cells(row)[4 + [c.metric for c in COLUMNS].index("slo_attainment.3")] == "-"
    assert len(text_cells(row)) == len(headings())


def test_unstable_cells_are_marked(data):
    """A system whose queue grew as long as sessions arrived is named so beside its numbers."""
    row = report_rows(data)[0]
    assert text_cells(row)[3] == "vllm"
    assert text_cells(row | {"unstable": True})[3] == "vllm (unstable)"


def test_plain_output_is_aligned(data):
    """Away from a terminal the table is text without control codes, one line a row."""
    stream = io.StringIO()
    print_table(headings(), [text_cells(row) for row in report_rows(data)], stream)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("workload")
    assert "\x1b" not in stream.getvalue()
    assert lines[1].index("vllm") == lines[0].index("system")
    assert lines[0].split()[-1] == "distinct"


def test_terminal_output_has_the_same_cells(data):
    """On a terminal the same cells appear in a styled table."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    print_table(["a", "b"], [["x", "1.5"]], stream)
    assert "1.5" in stream.getvalue()


def test_a_table_that_fits_stays_as_it_is():
    """Nothing is left out while there is room."""
    header, rows = ["load", "p99"], [["0.5", "1"]]
    assert fit(header, rows, 80, 1) == ("", header, rows, 1)


def test_narrow_terminals_lose_what_matters_least():
    """What all rows share becomes the caption first; then metrics go, and keys that differ stay."""
    header = ["workload", "system", "latency s", "p99", "failed"]
    rows = [["swe-bench", "vllm", "10", "20", "0"], ["swe-bench", "mars", "5", "9", "0"]]
    whole = 9 + 6 + 9 + 3 + 6 + 4 * 2
    caption, fitted, cells, num_text = fit(header, rows, whole - 1, 2)
    assert (caption, fitted, num_text) == ("workload swe-bench", header[1:], 1)
    assert cells[1] == ["mars", "5", "9", "0"]
    _, fitted, _, _ = fit(header, rows, 6 + 9 + 6 + 2 * 2, 2)
    assert fitted == ["system", "latency s", "failed"]

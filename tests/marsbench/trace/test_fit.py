"""Fits find the mixture that values were drawn from, and distances are to the held-out half."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

from marsbench.cli.trace import app
from marsbench.core import Session, ToolCall, Turn
from marsbench.errors import TraceError
from marsbench.markdown import markers, read_block
from marsbench.trace.fit import (
    BLOCK,
    Halves,
    best_mixture,
    comparison,
    halves,
    mixtures,
)


def test_two_bells_are_found_again():
    """Of 0.7 N(0, 0.5) and 0.3 N(4, 0.5), 3,000 values give both components; one bell gives one."""
    rng = np.random.default_rng(0)
    two = np.concatenate([rng.normal(0, 0.5, 2100), rng.normal(4, 0.5, 900)])
    low, high = sorted(best_mixture(two), key=lambda component: component[1])
    assert low == pytest.approx([0.7, 0.0, 0.5], abs=0.03)
    assert high == pytest.approx([0.3, 4.0, 0.5], abs=0.05)
    assert len(best_mixture(rng.normal(0, 1, 1000))) == 1


def test_halves_are_every_other_session(session, tmp_path):
    """Sorted by id, even places tune and odd places are held out; one session has no halves."""
    found = halves([session(i) for i in "dbac"], tmp_path)
    assert [s.session_id for s in found.tuning] == ["a", "c"]
    assert [s.session_id for s in found.held_out] == ["b", "d"]
    with pytest.raises(TraceError, match="has 1 sessions; a fit needs two at least"):
        halves([session("a")], tmp_path)


def test_comparison_measures_to_the_held_out_half(session):
    """Sessions equal to the held-out ones are at distance 0 and those of the other half at 1."""
    held_out = [session(f"h{i}", turns=[(100, 10)]) for i in range(3)]
    tuning = [session(f"t{i}", turns=[(200, 20), (5, 5)]) for i in range(3)]
    table = comparison({"same": held_out, "far": tuning}, Halves(tuning, held_out))
    assert table.splitlines()[0] == (
        "| quantity | n recorded | p50 recorded | p50 same | KS same | p50 far | KS far | KS tuning half |"
    )
    assert "| `turns` | 3 | 1 | 1 | 0.000 | 2 | 1.000 | 1.000 |" in table
    assert "output_tokens`" not in table.replace("total_output_tokens`", ""), "three values are few"


def test_mixtures_by_class():
    """Each class of calls has its line, with how many values and how many results are empty."""
    calls = (ToolCall("Bash", "test", 2.0, result_tokens=0), ToolCall("Bash", "test", 2.0))
    lines = list(mixtures([Session("s", (Turn(1, 10, tools=calls), Turn(1, 20)))]))
    assert lines[0] == "output:"
    assert "  end: {mixture: [[1.0, 2.996, 0.05]], p_empty: 0.000}  # n=1" in lines
    assert "  test: {mixture: [], p_empty: 1.000}  # n=2" in lines
    assert "  test: {mixture: [[1.0, 0.693, 0.05]], p_empty: 0.000}  # n=2" in lines


def test_the_command_fits_or_compares(write, session, tmp_path):
    """Without --against mixtures are printed, with it a table, which --write also stores."""
    trace = write([session(f"s{i}") for i in range(4)])
    page = tmp_path / "page.md"
    page.write_text("\n".join(markers(BLOCK)))
    fitted = CliRunner().invoke(app, ["fit", str(trace)])
    assert fitted.stdout.startswith("output:\n")
    again = ["fit", str(trace), "--against", str(trace), "--write", str(page)]
    compared = CliRunner().invoke(app, again)
    assert compared.exit_code == 0, compared.output
    assert compared.stdout.strip() == read_block(page, BLOCK)
    refused = CliRunner().invoke(app, ["fit", str(trace), "--write", str(page)])
    assert "there is a table only with --against" in str(refused.exception)

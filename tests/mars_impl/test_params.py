"""Parameters: overrides by name, and a description of each."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from mars_impl.params import MarsParams, describe
from marsbench.errors import ConfigError

README = Path(__file__).parents[2] / "mars_impl" / "README.md"


def test_overrides_replace_defaults_by_name():
    """One value changes, the others stay, and the original is untouched."""
    base = MarsParams()
    changed = base.with_overrides({"kv_target": 1})
    assert changed.kv_target == 1.0
    assert isinstance(changed.kv_target, float)
    assert {f.name for f in fields(base) if getattr(base, f.name) != getattr(changed, f.name)} <= {
        "kv_target"
    }


def test_unknown_parameters_are_refused():
    """A wrong name is an error that lists the right ones."""
    with pytest.raises(ConfigError, match=r"mars has no parameter 'kv_traget' \(has break_even, "):
        MarsParams().with_overrides({"kv_traget": 1.0})


def test_every_parameter_has_unit_and_source():
    """Each says in what unit it is and whether it is the paper's, the preview's or ours."""
    for name, _, unit, source in describe():
        assert unit, name
        assert re.match(r"(paper|preview|ours|InferCept)", source), name


def test_the_parameter_table_of_the_readme_is_current():
    """What stands between the markers is what ``describe`` says."""
    text = README.read_text(encoding="utf-8")
    table = text.partition("<!-- params:begin -->\n")[2].partition("<!-- params:end -->")[0]
    rows = [f"| `{name}` | {value:g} | {unit} | {source} |\n"
            for name, value, unit, source in describe()]  # fmt: skip
    assert table.splitlines(keepends=True)[2:] == rows

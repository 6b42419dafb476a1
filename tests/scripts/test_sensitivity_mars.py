"""What the repository says of MARS's parameters is what MARS has."""

from __future__ import annotations

import pandas as pd
import sensitivity_mars

from mars_impl.params import describe
from marsbench.markdown import read_block


def test_the_readme_has_every_parameter():
    """The table in mars_impl/README.md is the one that the script would write now."""
    assert read_block(sensitivity_mars.README, sensitivity_mars.BLOCK) == (
        sensitivity_mars.parameter_table()
    )


def test_the_grid_moves_numbers_away_from_their_defaults():
    """No switch, no ablation and no default is in it; elsewhere than in VALUES, half and twice."""
    defaults = {name: default for name, default, _, _ in describe()}
    found = sensitivity_mars.grid()
    assert set(sensitivity_mars.VALUES) < set(found) < set(defaults)
    assert not {"retention", "static_window", "fixed_ttl_s"} & set(found)
    assert all(defaults[name] not in values for name, values in found.items())
    assert found["level_2"] == [4_096, 16_384]


def test_the_stored_numbers_can_be_drawn(tmp_path):
    """The figure is made from the stored file alone."""
    figure = tmp_path / "figure.png"
    sensitivity_mars.draw(pd.read_csv(sensitivity_mars.CSV), figure)
    assert figure.read_bytes().startswith(b"\x89PNG")

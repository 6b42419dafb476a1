"""What a deployment hands to the driver."""

from __future__ import annotations

import pytest
import yaml

from marsbench.arrival.base import ArrivalPlan
from marsbench.core import Session, Turn
from marsbench.engine.cost import TurnCost
from marsbench.engine.profile import PROFILES
from marsbench.experiment.wiring import Setup, plan_cell, stock_system, try_out


@pytest.fixture
def profile(tmp_path):
    """A profile whose turns take 40 ms and 10 us a prompt token beside their steps."""
    data = yaml.safe_load((PROFILES / "tiny-cpu.yaml").read_text())
    data["turn"] = {"fixed_us": 40_000, "prompt_token_us": 10}
    data["sources"]["turn"] = "invented"
    path = tmp_path / "slow-way.yaml"
    path.write_text(yaml.safe_dump(data))
    return str(path)


def test_a_plan_tells_what_turns_take_beside_their_steps(profile):
    """40 ms and 10 us a prompt token, as the profile says, in picoseconds."""
    plan = plan_cell(
        Setup("sim", profile, tool_cores=0, tools="recorded"), stock_system(), {},
        [Session("a", (Turn(10, 2),))], ArrivalPlan(times_ps=(0,)), seed=0,
    )  # fmt: skip
    assert plan.turn_cost == TurnCost(40_000_000_000, 10_000_000)


def test_turns_of_a_profile_take_longer_by_it(profile):
    """Two turns of 1,000 and 1,250 prompt tokens: 2 * 40 ms and 22.5 ms more than without."""
    slow, quick = (
        Setup("sim", name, tool_cores=0, tools="recorded") for name in (profile, "tiny-cpu")
    )
    assert try_out(slow) - try_out(quick) == pytest.approx(0.1025, abs=1e-9)

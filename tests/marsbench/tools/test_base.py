"""Tool demand: what is recorded is kept to the picosecond, what is assumed is said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsbench.core import PS_PER_S, ToolCall, to_ps
from marsbench.errors import ConfigError
from marsbench.tools import TOOL_MODELS, ToolAssumptions, ToolDemand, demand_of, make_tool_model

STATED = ToolAssumptions()


def test_recorded_cpu_work_is_kept():
    """CPU seconds and parallelism from the trace; the rest of the wall time is I/O wait."""
    call = ToolCall("pytest", "test", wall_s=5.0, cpu_s=8.0, cores=4.0)
    demand = demand_of(call, speed=1.0, assumptions=STATED)
    # 8 core-seconds on 4 cores = 2 s, so 3 s of the 5 s are waiting
    assert demand == ToolDemand(
        "pytest", "test", 8 * PS_PER_S, 4000, 3 * PS_PER_S, timeout_ps=120 * PS_PER_S
    )
    # on one core 8 s + 3 s
    assert demand.alone_ps(1) == 11 * PS_PER_S
    assert demand.alone_ps() == 5 * PS_PER_S


def test_more_cpu_than_the_cores_allow_proves_more_cores():
    """9 core-seconds in 3 s of wall time need 3 cores whatever the trace says."""
    call = ToolCall("make", "build", wall_s=3.0, cpu_s=9.0, cores=1.0)
    demand = demand_of(call, speed=1.0, assumptions=STATED)
    assert (demand.cores_milli, demand.io_ps) == (3000, 0)


def test_unrecorded_cpu_work_is_assumed_by_class():
    """A test call computes most of its time, a file read little; both are listed."""
    test = demand_of(ToolCall("t", "test", wall_s=10.0), speed=1.0, assumptions=STATED)
    read = demand_of(ToolCall("r", "read", wall_s=10.0), speed=1.0, assumptions=STATED)
    assert (test.cpu_ps, test.io_ps) == (to_ps(9.5), to_ps(0.5))
    assert (read.cpu_ps, read.io_ps) == (to_ps(2.0), to_ps(8.0))
    other = ToolAssumptions(cpu_share={"mine": 1.0}, default_cpu_share=0.25)
    mine = demand_of(ToolCall("m", "mine", wall_s=4.0), speed=1.0, assumptions=other)
    rest = demand_of(ToolCall("x", "what", wall_s=4.0), speed=1.0, assumptions=other)
    assert (mine.cpu_ps, rest.cpu_ps) == (to_ps(4.0), to_ps(1.0))
    assert "mine 1" in other.provenance()["cpu_s"]
    assert "0.25" in other.provenance()["cpu_s"]
    assert "120 s" in other.provenance()["timeout"]


def test_speed_divides_cpu_work_and_not_waiting():
    """Cores twice as fast halve the CPU phase; the network is as slow as before."""
    call = ToolCall("pytest", "test", wall_s=5.0, cpu_s=4.0)
    demand = demand_of(call, speed=2.0, assumptions=STATED)
    assert (demand.cpu_ps, demand.io_ps) == (to_ps(2.0), to_ps(1.0))


@pytest.mark.parametrize(
    ("tool_class", "wall_s", "timeout_s"),
    [
        ("test", 3.0, 120.0),
        ("test", 120.0, 120.0),
        ("build", 121.0, 121.0),  # killed at 120 s and recorded 1 s late
        ("test", 300.0, None),  # it lived, so its harness had no such timeout
        ("subagent", 60.0, None),
    ],
)
def test_timeout_is_for_shell_commands(tool_class, wall_s, timeout_s):
    """Shell commands are killed at the harness's timeout, unless the recording disproves it."""
    call = ToolCall("c", tool_class, wall_s=wall_s)
    demand = demand_of(call, speed=1.0, assumptions=STATED)
    assert demand.timeout_ps == (None if timeout_s is None else to_ps(timeout_s))
    never = ToolAssumptions(shell_timeout_s=None)
    assert demand_of(call, speed=1.0, assumptions=never).timeout_ps is None


@given(
    st.floats(0.001, 1e4),
    st.none() | st.floats(0.0, 1e5),
    st.floats(0.01, 64.0),
    st.sampled_from(["read", "test", "build", "human", "unheard"]),
)
def test_alone_is_the_recorded_wall_time(wall_s, cpu_s, cores, tool_class):
    """At speed 1 an unlimited pool reproduces the recording exactly."""
    call = ToolCall("c", tool_class, wall_s=wall_s, cpu_s=cpu_s, cores=cores)
    demand = demand_of(call, speed=1.0, assumptions=STATED)
    assert demand.alone_ps() == to_ps(wall_s)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ToolDemand("x", "test", -1, 1000, 0), "cpu_ps >= 0"),
        (lambda: ToolDemand("x", "test", 1, 0, 0), "cores_milli >= 1"),
        (lambda: ToolDemand("x", "test", 1, 1, 0, timeout_ps=0), "timeout_ps is 0"),
        (lambda: ToolAssumptions(cpu_share={"test": 1.5}), "'test' is 1.5"),
        (lambda: ToolAssumptions(shell_timeout_s=0), "shell_timeout_s is 0"),
        (
            lambda: demand_of(ToolCall("x", "t", wall_s=1), speed=0, assumptions=STATED),
            "speed is 0",
        ),
        (
            lambda: demand_of(ToolCall("x", "t", wall_s=-1), speed=1, assumptions=STATED),
            "wall_s >= 0",
        ),
        (lambda: make_tool_model("modeled", 4), "did you mean 'modelled'"),
        (lambda: make_tool_model("modelled", -1), "-1 is negative"),
    ],
)
def test_wrong_input_is_one_clear_line(make, message):
    """Impossible numbers and unknown names are ConfigErrors that say what and where."""
    with pytest.raises(ConfigError, match=message):
        make()


def test_every_model_in_the_table_can_be_made():
    """Names in TOOL_MODELS lead to models that offer the protocol."""
    for name in TOOL_MODELS:
        model = make_tool_model(name, 2)
        assert (model.running, model.next_completion_ps(), model.busy_core_ps(0)) == (0, None, 0)

"""Recorded tool times: no call feels another."""

from __future__ import annotations

import pytest

from marsbench.tools.base import CallOutcome, ToolDemand
from marsbench.tools.recorded import Recorded


def test_calls_take_their_recorded_time():
    """Three calls at once take what each takes alone, in order of end, then of start."""
    model = Recorded()
    model.start(7, ToolDemand("a", "test", 100, 1000, 20), 0)  # ends 120
    model.start(3, ToolDemand("b", "test", 200, 2000, 20), 0)  # ends 120
    model.start(5, ToolDemand("c", "read", 10, 1000, 0), 50)  # ends 60
    assert model.next_completion_ps() == 60
    assert model.pop_completed(59) == []
    assert model.pop_completed(60) == [5]
    assert model.running == 2
    assert model.pop_completed(500) == [7, 3]
    assert model.outcome(3) == CallOutcome(120, 200, timed_out=False)
    assert model.next_completion_ps() is None
    with pytest.raises(KeyError):
        model.outcome(5)


def test_busy_cores_are_counted_while_computing():
    """The integral grows at the call's parallelism in its CPU phase and stands still after."""
    model = Recorded()
    model.start(1, ToolDemand("a", "test", 200, 2000, 50), 10)  # 2 cores in 10..110, waits to 160
    assert [model.busy_core_ps(t) for t in (10, 60, 110, 160, 900)] == [0, 100, 200, 200, 200]
    assert model.pop_completed(900) == [1]
    assert model.busy_core_ps(901) == 200


def test_timeout_kills():
    """A call that needs longer than its timeout ends there, as an error, with part of its work."""
    model = Recorded()
    model.start(1, ToolDemand("a", "test", 100, 1000, 0, timeout_ps=40), 0)
    model.start(2, ToolDemand("b", "test", 40, 1000, 0, timeout_ps=40), 0)
    assert model.pop_completed(40) == [1, 2]
    assert model.outcome(1) == CallOutcome(40, 40, timed_out=True)
    assert model.outcome(2) == CallOutcome(40, 40, timed_out=False)

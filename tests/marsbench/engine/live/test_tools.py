"""Tool models on the wall clock: late events do not turn time back."""

from __future__ import annotations

from marsbench.core import to_ps
from marsbench.engine.live.tools import ModelledTools
from marsbench.tools.base import ToolDemand
from marsbench.tools.recorded import Recorded


def io(seconds):
    """A call that waits for so long."""
    return ToolDemand("ls", "shell_read", cpu_ps=0, cores_milli=1000, io_ps=to_ps(seconds))


def test_a_call_that_was_due_before_a_later_start():
    """Calls end at 2 and 3; at 5 a third one starts, late events come after: each call is given out at
    its own time, and the third one, of 1 s, at 6."""
    tools = ModelledTools(Recorded())
    tools.start(1, io(2), 0)
    tools.start(2, io(3), 0)
    tools.start(3, io(1), to_ps(5))
    popped = []
    while (due_ps := tools.next_completion_ps()) is not None:
        for handle in tools.pop_completed(due_ps):
            assert tools.outcome(handle).at_ps == due_ps
            popped.append((handle, due_ps))
    assert popped == [(1, to_ps(2)), (2, to_ps(3)), (3, to_ps(6))]
    assert tools.running == 0


def test_time_stands_still_for_the_model():
    """A call that starts before what the model has seen starts then."""
    tools = ModelledTools(Recorded())
    tools.start(1, io(1), to_ps(5))
    tools.start(2, io(1), to_ps(4))
    assert tools.pop_completed(to_ps(5)) == []
    assert tools.running == 2
    assert tools.pop_completed(to_ps(6)) == [1, 2]

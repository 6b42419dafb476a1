"""The queue of tool calls asks its policy, and starts what the policy chooses."""

from __future__ import annotations

import pytest

from marsbench.admission.base import Niceness, Oversubscribe
from marsbench.core import to_ps
from marsbench.engine.slots import ToolQueue
from marsbench.errors import PolicyError


class Call:
    def __init__(self, name):
        self.name = name


class Two(Oversubscribe):
    """Two slots; the last call first; calls named ``long`` yield after half a second."""

    def slots(self, view, now_s):
        return 2

    def next_call(self, queue, view, now_s):
        return len(queue) - 1

    def niceness(self, call, view, now_s):
        return Niceness(5, 0.5) if call.name == "long" else Niceness()


def started(policy, names, running=0):
    found = []
    queue = ToolQueue(policy, lambda call, *how: found.append((call.name, *how)))
    queue.waiting.extend(Call(name) for name in names)
    queue.dispatch(None, 7, lambda: running + len(found))
    return found, [call.name for call in queue.waiting]


def test_slots_order_and_niceness_are_the_policy_s():
    """Of three calls the last two start, each with its niceness; the first waits."""
    assert started(Two(), ["a", "b", "long"]) == (
        [("long", 7, 5, to_ps(0.5)), ("b", 7, 0, 0)],
        ["a"],
    )


def test_no_slot_is_free():
    """What runs elsewhere counts."""
    assert started(Two(), ["a"], running=2) == ([], ["a"])


def test_zero_slots_are_one():
    """A policy cannot stop all tools: a run must be able to end."""

    class Zero(Two):
        def slots(self, view, now_s):
            return 0

    assert started(Zero(), ["a", "b"]) == ([("b", 7, 0, 0)], ["a"])


@pytest.mark.parametrize("niceness", [Niceness(20), Niceness(-1), Niceness(3, -0.5)])
def test_niceness_that_does_not_exist(niceness):
    """The error names the policy, the call and the range."""

    class Wrong(Two):
        def niceness(self, call, view, now_s):
            return niceness

    with pytest.raises(PolicyError, match=r"Wrong\.niceness: .* 'a'; it must be 0 to 19"):
        started(Wrong(), ["a"])

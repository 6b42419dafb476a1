"""The queue of tool calls that wait for a slot: asks the dispatch policy, decides nothing itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from marsbench.admission.base import MAX_NICE, SystemView, ToolCallView, ToolDispatchPolicy
from marsbench.core import to_ps, to_s
from marsbench.errors import PolicyError

Call = TypeVar("Call", bound=ToolCallView)


class ToolQueue(Generic[Call]):
    """Calls in order of arrival; ``start(call, at_ps, nice, nice_after_ps)`` runs one of them."""

    def __init__(
        self, policy: ToolDispatchPolicy, start: Callable[[Call, int, int, int], None]
    ) -> None:
        self.waiting: list[Call] = []
        self._policy = policy
        self._start = start

    def dispatch(self, view: SystemView, at_ps: int, running: Callable[[], int]) -> None:
        """Start waiting calls while the policy has slots for more than ``running()``.

        PolicyError for a niceness that there is not.
        """
        policy, now_s = self._policy, to_s(at_ps)
        while self.waiting:
            slots = policy.slots(view, now_s)
            if slots is not None and running() >= max(slots, 1):
                return
            call = self.waiting.pop(policy.next_call(self.waiting, view, now_s))
            nice, after_s = policy.niceness(call, view, now_s)
            if not 0 <= nice <= MAX_NICE or after_s < 0:
                raise PolicyError(
                    f"{type(policy).__name__}.niceness: ({nice}, {after_s}) for a call of "
                    f"{call.name!r}; it must be 0 to {MAX_NICE}, after 0 or more core-seconds"
                )
            self._start(call, at_ps, nice, to_ps(after_s))

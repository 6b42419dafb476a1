"""What the retention policies of the baselines share: session FCFS, and pins that waiting turns respect.

The rules are Continuum's (arXiv:2511.02230, released code); InferCept and the constant TTL are given
the same, so that they differ only in how long a pin lasts. A running turn that lacks blocks takes
pins back before it preempts; that is the engine's rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from baselines.session_fcfs import SessionFcfs
from marsbench.scheduler.base import EngineView, Key, RetainedView, TurnView


class SoftPins(SessionFcfs):
    """Scheduling policy and most of a retention policy; subclasses say in ``on_turn_end`` how long."""

    max_share = 1.0
    review_s = math.inf

    def review(
        self, retained: Sequence[RetainedView], view: EngineView, now_s: float
    ) -> Sequence[RetainedView]:
        """Give up nothing before its time."""
        return ()

    def reclaim_key(self, retained: RetainedView, view: EngineView, now_s: float) -> Key:
        """Give up the latest expiry first."""
        return (retained.until_s, float(retained.session))

    def yields_to(
        self, retained: RetainedView, turn: TurnView, view: EngineView, now_s: float
    ) -> bool:
        """Return False: waiting turns wait for pins to end."""
        return False

    def spares_returned(self) -> bool:
        """Return True: protection lasts until the next turn is scheduled, not until it arrives."""
        return True

"""A policy: of the sessions that wait for admission, the latest goes first."""

from __future__ import annotations

from collections.abc import Sequence

from marsbench.admission.base import SessionView, SystemView, Unlimited
from marsbench.core import PolicyContext
from marsbench.system import Policies, System


class Lifo(Unlimited):
    """Admits everybody, in the opposite order."""

    def admit(
        self, pending: Sequence[SessionView], view: SystemView, now_s: float
    ) -> Sequence[SessionView]:
        """Called whenever something changes; gives those that enter now, in order."""
        return list(reversed(pending))


def build(context: PolicyContext) -> Policies:
    """Fresh policy objects for one cell; ``context`` describes the deployment."""
    return Policies(admission=Lifo())


LIFO = System("skeleton-lifo", "latest session first", build)

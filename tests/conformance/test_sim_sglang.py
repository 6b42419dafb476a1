"""Every system inside the simulated SGLang: what must hold there as on every engine."""

from __future__ import annotations

from collections import Counter

import pytest
from cells import events, num_sessions, run, some_sessions, spread

from marsbench.engine.sim_sglang.core import RadixCore
from marsbench.events import Kind, Status
from marsbench.registry import load, table

NAMES = [
    name
    for name in sorted(table("SYSTEMS"))
    if "sim" in (load("SYSTEMS", name).engines or ("sim",))
]


class Checked(RadixCore):
    """Asserts its books whenever it is left, and that it never stalls."""

    def advance(self, now_ps, limit_ps):
        steps = self.stats.steps
        after = super().advance(now_ps, limit_ps)
        self.check_integrity()
        stalled = self.stats.steps == steps and bool(self.view.waiting)
        assert not stalled, "nothing runs although a turn waits"
        return after


@pytest.mark.parametrize("name", NAMES)
def test_sessions_end_and_runs_repeat(name):
    """Each session and sub-agent ends once, OK or too large; the books balance whenever the engine is
    left; a second run has the same rows.
    """
    sessions = some_sessions(8, seed=1)
    log, again = (run(name, sessions, spread(len(sessions), 0.2), core=Checked) for _ in range(2))
    ends = events(log, Kind.SESSION_END)
    assert len({end["session"] for end in ends}) == len(ends) == num_sessions(sessions)
    assert Counter(end["status"] for end in ends) == {
        Status.OK: len(ends) - 1,
        Status.TOO_LARGE: 1,
    }
    assert log.rows == again.rows

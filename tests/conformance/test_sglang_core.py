"""Every registered system on SGLang's own scheduler: what must hold there as on the simulated engine."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec

import pytest
from cells import events, num_sessions, run, some_sessions, spread

from marsbench.events import Kind, Status
from marsbench.registry import load, table

pytestmark = [
    pytest.mark.sglang,
    pytest.mark.skipif(find_spec("sglang") is None, reason="SGLang is not installed"),
]
NAMES = [
    name
    for name in sorted(table("SYSTEMS"))
    if "sglang-core" in (load("SYSTEMS", name).engines or ("sglang-core",))
]


@pytest.mark.parametrize("name", NAMES)
def test_sessions_end_and_runs_repeat(name):
    """Each session and sub-agent ends once, OK or too large; the engine's books balance whenever it
    is left; a second run has the same rows.
    """
    from marsbench.engine.sglang.core import SglangCore

    class Checked(SglangCore):
        def advance(self, now_ps, limit_ps):
            after = super().advance(now_ps, limit_ps)
            self.check_books()
            return after

    sessions = some_sessions(8, seed=1)
    log, again = (run(name, sessions, spread(len(sessions), 0.2), core=Checked) for _ in range(2))
    ends = events(log, Kind.SESSION_END)
    assert len({end["session"] for end in ends}) == len(ends) == num_sessions(sessions)
    assert Counter(end["status"] for end in ends) == {
        Status.OK: len(ends) - 1,
        Status.TOO_LARGE: 1,
    }
    assert log.rows == again.rows

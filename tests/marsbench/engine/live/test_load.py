"""What others do on the machine while something is measured is told apart from our own work."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from marsbench.engine.live import load
from marsbench.engine.live.load import LoadMeter, Reading, load_warning


def share(*, wall_s, busy_s, ours_s, outside_s=0.0, monkeypatch):
    """What a meter says on a machine of four cores after so much time."""
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    readings = iter((Reading(5.0, 100.0, 7.0), Reading(5 + wall_s, 100 + busy_s, 7 + ours_s)))
    return LoadMeter(read=lambda: next(readings)).others(outside_s)


def test_the_share_of_others(monkeypatch):
    """Of 40 core-seconds 30 were used, 10 of them by us: others had half of the machine. What we
    caused outside our own processes is ours, and less than nothing is nothing."""
    asked = {"wall_s": 10, "busy_s": 30, "monkeypatch": monkeypatch}
    assert share(ours_s=10, **asked) == pytest.approx(0.5)
    assert share(ours_s=10, outside_s=16, **asked) == pytest.approx(0.1)
    assert share(ours_s=31, **asked) == 0.0
    assert share(ours_s=10, **(asked | {"wall_s": 0.9})) is None, "ticks of 10 ms say little"


def test_a_warning_beyond_a_tenth():
    """A tenth of the cores is let pass; more is one line with the share."""
    assert load_warning(None) is None
    assert load_warning(0.1) is None
    warning = load_warning(0.104)
    assert "other programs kept 10% of this machine's cores busy" in warning
    assert "\n" not in warning


def test_children_and_what_they_leave_are_ours():
    """CPU time of a child counts as ours while it runs and after it has ended."""
    # The child burns more than is asked for: the kernel's counters round down to ticks of 10 ms.
    burn = "import time; e = time.process_time() + 0.5\nwhile time.process_time() < e: pass"
    before_s = load._used_s([os.getpid()])
    command = [sys.executable, "-c", burn + "\nprint(flush=True)\ninput()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()  # it has burnt its share and lives on
        assert load._used_s([child.pid]) >= 0.4
        assert load._used_s([os.getpid()]) - before_s >= 0.4
        child.communicate(b"\n")
    assert load._used_s([os.getpid()]) - before_s >= 0.4


def test_a_server_at_an_address_here_is_ours(fake):
    """Whoever listens at the address of a server on this machine is found; elsewhere nobody is."""
    from marsbench.engine.live.fake_server import Behaviour

    with fake(Behaviour()) as (url, _):
        assert load._listeners(url) == [os.getpid()]
        assert load._listeners(url.replace("127.0.0.1", "192.0.2.1")) == []
    assert load._listeners("") == []

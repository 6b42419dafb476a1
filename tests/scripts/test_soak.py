"""The soak: two minutes of everything that goes wrong leave nothing over, and it would say so."""

from __future__ import annotations

import argparse
import asyncio

import pytest
import soak


def options(**given) -> argparse.Namespace:
    found = {
        "seconds": 120.0, "agents": 16, "system": "mars", "restart_s": 20.0, "end_s": 60.0,
        "steady": False, "serve": [], "log": None, **given,
    }  # fmt: skip
    return argparse.Namespace(**found)


@pytest.mark.soak
def test_two_minutes_leave_nothing_over(capsys):
    """Clients that vanish, sessions that never come back, tools that hang, backends that restart: no
    session is lost, and no place, slot, turn, body or KV block is left; memory does not grow."""
    run = soak.Soak(options())
    asyncio.run(run.run())
    assert run.faults == []
    total = {name: sum(row[name] for row in run.rows) for name in run.rows[0]}
    assert total["sessions_ended"] > 20
    assert total["asked_again"] > 0
    assert total["vanished"] + total["never_back"] > 0
    assert run.rows[-1]["restarts"] > 4


def test_what_is_left_is_told(monkeypatch, capsys):
    """Sessions that never come back and are not given up in time are a fault."""
    monkeypatch.setattr(soak, "FORGET", 1.0)
    monkeypatch.setattr(soak, "CALL_IDLE_S", 0.0)
    run = soak.Soak(
        options(seconds=4.0, agents=2, end_s=3.0, serve=["--session-idle=900", "--call-idle=900"])
    )
    asyncio.run(run.run())
    assert any(fault.startswith("left at the end: sessions is") for fault in run.faults)


def test_memory_and_latency_that_grow_are_faults(capsys):
    """Sixteen MiB more than after the first third; half as much again at the 99th percentile."""
    run = soak.Soak(options(steady=True))
    row = {"turns": 9, "resident_mib": 70.0, "p99_s": 1.0}
    run.rows = [dict(row) for _ in range(soak.SAMPLES)]
    run.look_at_rows()
    assert run.faults == []
    run.rows[-1]["resident_mib"] = 90.0
    for grown in run.rows[-3:]:
        grown["p99_s"] = 1.6
    run.look_at_rows()
    assert run.faults == ["memory grew by 20 MiB", "p99 of turns went from 1.00 to 1.60 s"]

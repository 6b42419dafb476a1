"""Remembered results: found again by content, never trusted when damaged, never required."""

from __future__ import annotations

from dataclasses import replace

import pytest

from marsbench import sources
from marsbench.core import Session, Turn
from marsbench.experiment import memo
from marsbench.experiment.memo import Memo, code_digest, session_digest


def test_found_by_inputs(tmp_path):
    """The same inputs give the stored result, other inputs nothing; order of keys is no input."""
    memo = Memo(tmp_path, print)
    memo.put("capacity", {"a": 1, "b": 2}, [1.5])
    assert memo.get("capacity", {"b": 2, "a": 1}) == [1.5]
    assert memo.get("capacity", {"a": 1, "b": 3}) is None
    assert memo.get("ideal", {"a": 1, "b": 2}) is None


def test_damaged_file_is_measured_again(tmp_path):
    """A file that a crash cut off is as good as none."""
    memo = Memo(tmp_path, print)
    memo.put("capacity", {}, 1)
    (path,) = tmp_path.rglob("*.json")
    path.write_text(path.read_text()[:-3])
    assert memo.get("capacity", {}) is None


def test_unwritable_folder_is_said_once(tmp_path):
    """A cache that cannot be written costs one line, not the run."""
    (tmp_path / "file").write_text("")
    said: list[str] = []
    memo = Memo(tmp_path / "file" / "cache", said.append)
    memo.put("capacity", {}, 1)
    memo.put("capacity", {"x": 1}, 1)
    assert len(said) == 1
    assert "--cache" in said[0]


def test_session_digest_is_of_content():
    """Two sessions that do the same are one measurement, whatever they are called."""
    session = Session("a", (Turn(10, 5),))
    other_name = replace(session, session_id="b", arrival_s=3.0)
    assert session_digest(session) == session_digest(other_name)
    assert session_digest(session) != session_digest(Session("a", (Turn(10, 6),)))


def test_code_digest_covers_packages():
    """Tuned parameters depend on the code of the policy's package too, and on the engine."""
    assert code_digest("sim") == code_digest("sim")
    assert code_digest("sim") != code_digest("sim", ["baselines"])
    assert code_digest("sim") != code_digest("vllm-core")


@pytest.mark.parametrize(
    ("module", "counts"),
    [
        ("marsbench.engine.sim.batch", True),
        ("marsbench.engine.sim.kv", True),
        ("marsbench.engine.life", True),
        ("marsbench.tools.modelled", True),
        ("marsbench.scheduler.base", True),
        ("marsbench.engine.vllm.core", False),
        ("marsbench.engine.live.client", False),
        ("marsbench.engine.parity", False),
        ("marsbench.engine.fit", False),
        ("marsbench.report.style", False),
    ],
)
def test_code_digest_is_of_what_simulates(monkeypatch, tmp_path, module, counts):
    """A change in a module that a simulation runs discards what was measured; others do not."""
    before = code_digest("sim")
    changed = tmp_path / "changed.py"
    changed.write_text("another = 1")
    real = sources.path_of
    monkeypatch.setattr(memo, "path_of", lambda name: changed if name == module else real(name))
    assert (code_digest("sim") != before) is counts

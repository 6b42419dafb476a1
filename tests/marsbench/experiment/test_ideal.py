"""The ideal latency of a session against the steps it must take, counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import marsbench
from marsbench.runfolder import read_table

STEP_PS = 500_000_000_000
SESSION = {
    "trace_version": 1, "session_id": "alone", "agent": "test", "model": "test",
    "turns": [
        {"new_input_tokens": 1000, "output_tokens": 3,
         "tools": [{"name": "bash", "class": "script", "wall_s": 2.0}]},
        {"new_input_tokens": 100, "output_tokens": 2},
    ],
}  # fmt: skip


def test_ideal_is_the_hand_computed_latency_of_a_lone_session(run, tmp_path):
    """Steps of 0.5 s, whatever is in them. Turn 1: a step that prefills and gives the first token, two
    for the other tokens, then a tool of 2 s; turn 2: two steps. 3 x 0.5 + 2 + 2 x 0.5 = 4.5 s. Replayed
    alone the session takes exactly that, so its slowdown is 1.
    """
    profile = yaml.safe_load((Path(marsbench.__path__[0]) / "profiles/tiny-cpu.yaml").read_text())
    flat = {"c_tok": 0, "c_pair": 0, "weights": [0], "m_ctx": 0, "o_step": STEP_PS, "o_seq": 0}
    (tmp_path / "steps.yaml").write_text(yaml.safe_dump(profile | {"coefficients": flat}))
    (tmp_path / "alone.jsonl").write_text(json.dumps(SESSION) + "\n")
    result, _ = run(
        workload=[str(tmp_path / "alone.jsonl")], profile=[str(tmp_path / "steps.yaml")],
        sessions=1, rate_per_s=[0.1], load=[],
    )  # fmt: skip
    row = read_table(result.folder, "sessions").iloc[0]
    assert row["ideal_s"] == pytest.approx(4.5)
    assert row["latency_s"] == row["ideal_s"]
    assert row["slowdown"] == 1.0

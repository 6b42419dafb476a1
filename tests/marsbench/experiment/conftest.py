"""A small trace on disk and a runner of experiments over it."""

from __future__ import annotations

import json

import pytest

from marsbench.config import load_config
from marsbench.experiment.runner import run_experiment


class Recorder:
    """A reporter that remembers what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.stages: list[str] = []
        self.cells: list[tuple[int, str]] = []
        self.ticks = 0
        self.ended = False

    def note(self, text):
        self.notes.append(text)

    def stage(self, text):
        self.stages.append(text)

    def begin(self, num_cells, num_sessions):
        pass

    def tick(self, done_sessions, now_s):
        self.ticks += 1

    def cell_done(self, cell, line):
        self.cells.append((cell.index, line))

    def end(self):
        self.ended = True


def trace_lines(num: int = 16, first_prompt_tokens: int = 6000) -> list[dict]:
    """Sessions of 3 to 6 turns with a tool call each; no two alike."""
    return [
        {
            "trace_version": 1,
            "session_id": f"s{k}",
            "agent": "test",
            "model": "test",
            "turns": [
                {
                    "new_input_tokens": first_prompt_tokens + 100 * k if turn == 0 else 300 + k,
                    "output_tokens": 40 + k,
                    "tools": [{"name": "bash", "class": "script", "wall_s": 0.5 + 0.1 * k}],
                }
                for turn in range(3 + k % 4)
            ],
        }
        for k in range(num)
    ]


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "small.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in trace_lines()))
    return path


@pytest.fixture
def run(trace, tmp_path):
    """run(out="a", **flags) -> (result, recorder); options of run_experiment by name, ``on`` an engine."""

    def go(out="run", *, jobs=1, resume=False, overwrite=False, on=None, **flags):
        more = {
            name: flags.pop(name) for name in ("stream", "stream_wait", "shard") if name in flags
        }
        recorder = Recorder()
        given = {
            "workload": [str(trace)], "system": ["vllm"], "sessions": 6,
            "capacity": {"sessions": 8}, "tuning": {"sessions": 4},
        }  # fmt: skip
        result = run_experiment(
            load_config(flags={**given, **flags}),
            tmp_path / out,
            reporter=recorder,
            jobs=jobs,
            resume=resume,
            overwrite=overwrite,
            cache=tmp_path / "cache",
            engine=on,
            **more,
        )
        return result, recorder

    return go


@pytest.fixture
def recorder():
    """The class of a reporter that remembers what it was told."""
    return Recorder

"""A trace of twelve sessions, and commands called in this process."""

from __future__ import annotations

import pytest
from command_line import session_line, write_trace

from marsbench.cli import main


@pytest.fixture
def trace(tmp_path):
    return write_trace(tmp_path / "small.jsonl", [session_line(k) for k in range(12)])


@pytest.fixture
def cli(tmp_path, capsys, monkeypatch):
    """cli("run", ...) -> (exit status, stdout, stderr), with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out, printed.err

    return call

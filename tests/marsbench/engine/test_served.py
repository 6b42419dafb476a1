"""A plug-in that is told nonsense ends its server with one line, before anything is loaded."""

from __future__ import annotations

import json

import pytest

from marsbench.engine.served import ASYNC, SYNC, ServedOptions, check_command_line
from marsbench.errors import ConfigError

GOOD = {"system": "mars", "profile": "h100-nvl/qwen3-coder-30b-a3b", "tool_cores": 16}


def command(scheduler: str = ASYNC, *more: str, **given: object) -> list[str]:
    config = json.dumps({"marsbench": {**GOOD, **given}})
    return ["--model", "m", f"--scheduler-cls={scheduler}", "--additional-config", config, *more]


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (command("marsbench.engine.vllm.plugin.Served"), "use marsbench.engine.vllm.plugin.Served"),
        (command(ASYNC, "--no-async-scheduling"), f"use {SYNC}"),
        (["--scheduler_cls", ASYNC, "--additional-config", "{"], "not JSON"),
        (["--scheduler-cls", ASYNC], "marsbench.system is missing"),
        (command(sytem="mars"), "marsbench.sytem: unknown; did you mean 'system'?"),
        (command(system="marz"), "unknown system 'marz'; did you mean 'mars'"),
        (command(system="oracle"), "sees the future"),
        (command(profile="h100"), "profile 'h100'"),
        (command(tool_cores="many"), "tool_cores: expected a whole number"),
        (command(params={"level_one": 2}), "level_one"),
        (command(params={"level_1": "a"}), "params.level_1: expected a number"),
        (command(listen="/run/marsbench"), "listen: '/run/marsbench' is no address"),
    ],
)
def test_what_cannot_work_is_one_line(argv, what, capsys, monkeypatch):
    """On standard error, with the place and the way out; status 2, as of every wrong use."""
    for variable in ("MARSBENCH_SYSTEM", "MARSBENCH_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(SystemExit) as ended:
        check_command_line(argv)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.startswith("marsbench: ")
    assert what in told


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--model", "m"],
        ["--scheduler-cls", "my.Scheduler", "--additional-config", "{"],
        ["--scheduler-cls", ASYNC, "--config", "vllm.yaml"],
        command(),
        command(SYNC, "--no-async-scheduling"),
    ],
)
def test_other_servers_and_right_ones_start(argv):
    """Nothing is said of a server that is not ours, or that can work."""
    check_command_line(argv)


def test_the_environment_names_what_the_command_line_does_not(monkeypatch):
    """MARSBENCH_SYSTEM and MARSBENCH_PROFILE stand in for what is not given."""
    monkeypatch.setenv("MARSBENCH_SYSTEM", "mars")
    monkeypatch.setenv("MARSBENCH_PROFILE", GOOD["profile"])
    assert ServedOptions.of({}).system == "mars"
    assert ServedOptions.of({"marsbench": {"system": "vllm"}}).system == "vllm"
    with pytest.raises(ConfigError, match="must be an object"):
        ServedOptions.of({"marsbench": "mars"})

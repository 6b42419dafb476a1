"""A live engine starts the server that cells need, once, and says whether its client kept up."""

from __future__ import annotations

import importlib
import os
import signal
import stat
import sys

import pytest

from marsbench.arrival.base import ArrivalPlan
from marsbench.core import Session, ToolCall, Turn
from marsbench.engine import LIVE_ENGINES
from marsbench.engine.base import EngineConfig
from marsbench.engine.live.core import LiveCore
from marsbench.engine.live.engine import LiveEngine, check_length, first_model
from marsbench.engine.live.fake_server import Behaviour
from marsbench.engine.live.options import LiveOptions, split_options
from marsbench.engine.live.server import ServerCommand, answers
from marsbench.engine.live.supervisor import descendants
from marsbench.errors import ConfigError, EngineError
from marsbench.records import EventLog
from marsbench.system import Policies
from marsbench.tables import build_tables
from marsbench.tools import make_tool_executor
from marsbench.tools.recorded import Recorded

SESSIONS = [Session("s", (Turn(100, 5, tools=(ToolCall("ls", "shell_read", 0.0),)), Turn(30, 3)))]
CONFIG = EngineConfig(num_blocks=256, max_model_len=4096)


def run(engine: LiveEngine, config: EngineConfig = CONFIG, tools=None) -> EventLog:
    """One cell of one session."""
    log = EventLog()
    engine.run_cell(
        sessions=SESSIONS,
        arrivals=ArrivalPlan((0,)),
        core_factory=lambda listener: LiveCore(config, None, Policies(), listener),
        policies=Policies(),
        tools=tools or Recorded(),
        log=log,
    )
    return log


@pytest.fixture
def interpreter(tmp_path):
    """A "Python with vLLM" that starts the fake server on the port vLLM would have."""
    script = tmp_path / "python"
    script.write_text(
        "#!/bin/sh\n"
        f'echo started >> "{tmp_path}/starts"\n'
        'while [ "$1" != --port ]; do shift; done\n'
        f'exec "{sys.executable}" -m marsbench.engine.live.fake_server --port "$2" '
        "--model marsbench --num-blocks 100 --ttft-ms 1\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    return script


def test_one_server_for_equal_cells(interpreter, tmp_path):
    """Two cells with equal flags share a server, without sharing content; other flags get another
    one, and none is left at the end."""
    options = LiveOptions(python=str(interpreter), warm_up_turns=1)
    urls = []
    with LiveEngine("vllm", options, salt="run", log_folder=tmp_path / "logs") as engine:
        for config in (
            CONFIG,
            CONFIG,
            EngineConfig(num_blocks=256, max_model_len=4096, max_num_seqs=9),
        ):
            log = run(engine, config)
            urls.append(engine._running[1].command.url)
            assert build_tables(log).sessions["status"].tolist() == ["ok"]
    assert urls[0] == urls[1] != urls[2]
    assert (tmp_path / "starts").read_text().count("started") == 2
    assert not any(answers(url, 0.5) for url in urls)
    assert [report["server"]["hit_tokens"] for report in engine.reports] == [96, 96, 96]
    assert "--max-num-seqs 9" in engine.server_flags["server-1"]
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == [
        "server-0.log",
        "server-1.log",
    ]


def test_server_that_dies_in_the_middle(interpreter):
    """A server killed while a tool runs fails the cell with its log, and the next cell gets a new
    server."""

    class Killing(Recorded):
        def start(self, handle, demand, now_ps):
            os.kill(descendants(engine._running[1].pid)[0], signal.SIGKILL)
            super().start(handle, demand, now_ps)

    options = LiveOptions(python=str(interpreter), warm_up_turns=0)
    with LiveEngine("vllm", options, salt="run") as engine:
        with pytest.raises(
            EngineError, match=r"ended with status 137 \(log: .*\)\nserving marsbench"
        ):
            run(engine, tools=Killing())
        assert build_tables(run(engine)).sessions["status"].tolist() == ["ok"]


def test_system_inside_the_engine_starts_no_server(interpreter, tmp_path):
    """What no stock server can run is refused before one is started."""
    with (
        LiveEngine("vllm", LiveOptions(python=str(interpreter)), salt="x") as engine,
        pytest.raises(EngineError, match="scheduler class"),
    ):
        engine.run_cell(
            sessions=SESSIONS,
            arrivals=ArrivalPlan((0,)),
            core_factory=lambda listener: LiveCore(CONFIG, None, Policies(), listener),
            policies=Policies(scheduling=object()),
            tools=Recorded(),
            log=EventLog(),
        )
    assert not (tmp_path / "starts").exists()


def test_report_of_a_cell(fake):
    """The report counts turns, failures and retries, and says how late the client was."""
    with (
        fake(Behaviour(faults={0: "429", 2: "500"})) as (url, _),
        LiveEngine("openai", LiveOptions(url=url, warm_up_turns=0), salt="x") as engine,
    ):
        log = run(engine)
    (found,) = engine.reports
    assert (found["turns"], found["failed_turns"], found["retried_turns"]) == (2, 1, 1)
    assert found["problems"] == {"HTTP 429": 1, "HTTP 500": 1}
    assert found["send_error_s"]["p50"] >= 0
    assert found["wrong_prompt_lengths"] == found["wrong_output_lengths"] == 0
    assert engine.server_flags == {"url": url, "model": "fake"}
    assert build_tables(log).sessions["status"].tolist() != ["ok"]


def test_vllm_is_told_what_a_plug_in_needs(fake):
    """Session, turn, arrival, tools and whether it is the last go along, under the gateway's names."""
    with fake(Behaviour()) as (url, server):
        with LiveEngine(
            "vllm", LiveOptions(url=url, model="m", warm_up_turns=0), salt="x"
        ) as engine:
            run(engine)
        first, second = (body["vllm_xargs"] for body in server.requests)
        assert server.requests[0]["session_id"] == "x/1/0", "run, cell, session"
    assert (first["marsbench_turn"], first["marsbench_tools"], first["marsbench_last"]) == (
        0,
        ["ls"],
        0,
    )
    assert (second["marsbench_turn"], second["marsbench_last"]) == (1, 1)
    assert first["marsbench_session"] == 0
    assert first["marsbench_arrival_s"] == 0.0


def test_real_processes_as_tools(fake):
    """A live cell with tools that really run: the call's CPU time is on record."""
    with fake(Behaviour()) as (url, _):
        sessions = [
            Session("s", (Turn(9, 2, tools=(ToolCall("t", "test", 0.05, cpu_s=0.05),)), Turn(9, 2)))
        ]
        log = EventLog()
        with LiveEngine("vllm", LiveOptions(url=url), salt="x") as engine:
            engine.run_cell(
                sessions=sessions,
                arrivals=ArrivalPlan((0,)),
                core_factory=lambda listener: LiveCore(CONFIG, None, Policies(), listener),
                policies=Policies(),
                tools=make_tool_executor("process", 1),
                tool_cores=1,
                log=log,
            )
    (cpu_s,) = build_tables(log).calls["cpu_s"]
    assert cpu_s == pytest.approx(0.05, rel=0.3)


def test_server_that_cannot_start(tmp_path):
    """An interpreter without vLLM is an error with the interpreter's own words."""
    options = LiveOptions(python=sys.executable, extra_flags="", start_timeout_s=60)
    with LiveEngine("vllm", options, salt="x") as engine:
        engine._command = lambda config, inside: ServerCommand(
            (sys.executable, "-m", "no_such_vllm"), "http://127.0.0.1:9", "m"
        )
        with pytest.raises(EngineError, match="No module named no_such_vllm"):
            run(engine)


def test_options_and_flags_are_told_apart():
    """Names of options and of engine flags are split; a name that is neither is refused with the
    nearest one, a value of the wrong type with its name."""
    options, flags = split_options({"url": "http://h:1", "block_size": 32, "start_timeout_s": 5})
    assert (options.url, options.start_timeout_s, flags) == ("http://h:1", 5.0, {"block_size": 32})
    with pytest.raises(ConfigError, match="did you mean 'python'"):
        split_options({"pyton": "x"})
    with pytest.raises(ConfigError, match=r"engine.params.warm_up_turns: expected int, got 'many'"):
        split_options({"warm_up_turns": "many"})
    with pytest.raises(ConfigError, match="does not begin with http"):
        split_options({"url": "localhost:8000"})
    with pytest.raises(ConfigError, match="use auto, cpu or gpu"):
        split_options({"device": "tpu"})
    with pytest.raises(ConfigError, match=r"engine.params.layers: 0; use 1 or more"):
        split_options({"layers": 0})
    with pytest.raises(ConfigError, match=r"engine.params.stream_interval: 0; use 1 or more"):
        split_options({"stream_interval": 0})
    with pytest.raises(ConfigError, match="drop url"):
        split_options({"url": "http://h:1", "scheduler_cls": "a.B"})


def test_openai_needs_an_address():
    """There is nothing to start for engine openai."""
    with pytest.raises(EngineError, match=r"engine.params.url=http"):
        LiveEngine("openai", LiveOptions(), salt="x")


def test_model_name_is_asked_for(fake):
    """Without a model name the server's first one is used; no server, a clear error."""
    with fake(Behaviour()) as (url, _):
        assert first_model(url) == "fake"
    with pytest.raises(
        EngineError, match=r"/v1/models does not name a model .*engine.params.model"
    ):
        first_model("http://127.0.0.1:9")


def test_engines_are_registered():
    """Each live engine's name leads to a core with the constructor all cores have."""
    assert set(LIVE_ENGINES) == {"vllm", "openai"}
    config = EngineConfig(num_blocks=100, max_model_len=4096)
    for path in LIVE_ENGINES.values():
        module, _, attribute = path.rpartition(".")
        core = getattr(importlib.import_module(module), attribute)(config, None, Policies(), None)
        assert core.fits(1000, 600), "100 blocks of 16"
        assert not core.fits(1000, 602)
        assert core.idle()


def test_a_model_length_beyond_the_kv_cache_is_refused_before_a_server_is_started():
    """vLLM would end with a page of its own log; we say which flag to set to what."""
    with pytest.raises(EngineError, match=r"max_model_len=20480 or more num_blocks"):
        check_length(EngineConfig(num_blocks=160, block_size=128, max_model_len=32768))
    check_length(EngineConfig(num_blocks=160, block_size=128, max_model_len=20480))

"""A live engine starts the server that cells need, once, and says whether its client kept up."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from marsbench.arrival.base import ArrivalPlan
from marsbench.core import Session, ToolCall, Turn, to_ps
from marsbench.engine.base import EngineConfig
from marsbench.engine.kind import Opening
from marsbench.engine.live import core
from marsbench.engine.live.engine import LiveEngine, first_model
from marsbench.engine.live.fake_server import Behaviour
from marsbench.engine.live.kinds.openai import OpenAi
from marsbench.engine.live.kinds.vllm import Vllm
from marsbench.engine.live.load import LoadMeter
from marsbench.engine.live.options import LiveOptions, split_options
from marsbench.engine.live.server import ServerCommand, answers, free_port, running
from marsbench.engine.live.supervisor import descendants
from marsbench.engine.plan import CellPlan
from marsbench.engine.profile import load_profile
from marsbench.errors import ConfigError, EngineError
from marsbench.records import EventLog
from marsbench.system import Policies
from marsbench.tables import build_tables
from marsbench.tools import make_tool_executor
from marsbench.tools.recorded import Recorded

SESSIONS = [Session("s", (Turn(100, 5, tools=(ToolCall("ls", "shell_read", 0.0),)), Turn(30, 3)))]
CONFIG = EngineConfig(num_blocks=256, max_model_len=4096)


KINDS = {"vllm": Vllm(), "openai": OpenAi()}


def live(name: str, options: LiveOptions, **opening) -> LiveEngine:
    """A live engine of one kind."""
    return LiveEngine(KINDS[name], options, Opening(**opening))


def run(engine: LiveEngine, config: EngineConfig = CONFIG, tools=None, model=None) -> EventLog:
    """One cell of one session; ``ran`` has what else the engine told."""
    log = EventLog()
    log.ran = engine.run(
        CellPlan(
            sessions=tuple(SESSIONS),
            arrivals=ArrivalPlan((0,)),
            policies=Policies(),
            flags=config,
            tools=tools or Recorded(),
            model=model,
        ),
        log,
    )
    return log


@pytest.fixture
def interpreter(tmp_path):
    """A "Python with vLLM" that starts the fake server on the port vLLM would have."""
    script = tmp_path / "python"
    script.write_text(
        "#!/bin/sh\n"
        'case "$1" in -c) exit 0;; esac\n'
        f'echo started >> "{tmp_path}/starts"\n'
        '[ -n "$VLLM_RPC_BASE_PATH" ] && touch "$VLLM_RPC_BASE_PATH/socket"\n'
        f'echo "$VLLM_RPC_BASE_PATH" > "{tmp_path}/sockets"\n'
        'while [ "$1" != --model ]; do shift; done\n'
        f'cp "$2/config.json" "{tmp_path}/model.json"\n'
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
    urls, hits = [], []
    with live("vllm", options, run_id="run", log_folder=tmp_path / "logs") as engine:
        for config in (
            CONFIG,
            CONFIG,
            EngineConfig(num_blocks=256, max_model_len=4096, max_num_seqs=9),
        ):
            log = run(engine, config)
            urls.append(engine._running[1].command.url)
            hits.append(log.ran.measured["live"]["server"]["hit_tokens"])
            assert build_tables(log).sessions["status"].tolist() == ["ok"]
    assert urls[0] == urls[1] != urls[2]
    assert (tmp_path / "starts").read_text().count("started") == 2
    assert not any(answers(url, 0.5) for url in urls)
    assert hits == [96, 96, 96]
    assert "--max-num-seqs 9" in engine.described()["server-1"]
    assert not (tmp_path / "logs").exists(), "only servers that failed leave their logs"


def test_sockets_of_the_server_go_with_it(interpreter, tmp_path):
    """The server is told to keep its sockets in a folder of the engine's, whose path leaves room for
    their names, and the folder is gone when the engine is closed."""
    options = LiveOptions(python=str(interpreter), warm_up_turns=0)
    with live("vllm", options, run_id="run") as engine:
        run(engine)
        folder = Path((tmp_path / "sockets").read_text().strip())
        assert (folder / "socket").exists()
        assert len(str(folder)) + len("/") + 36 <= 107, "a socket's path has no more room"
        assert "VLLM_RPC_BASE_PATH" not in engine.described()["server-0"]
    assert not folder.exists()


@pytest.mark.parametrize(
    ("asked", "profile", "started", "warned"),
    [(0, 24, 24, False), (24, 2, 24, True), (2, 2, 2, False), (0, None, 2, False)],
)
def test_the_tiny_model_has_the_layers_of_the_profile_s(
    interpreter, tmp_path, asked, profile, started, warned
):
    """It has as many layers as the profile's model unless told otherwise, and a cell whose server has
    others says so in one line."""
    model = None
    if profile is not None:
        model = load_profile("tiny-cpu").model.model_copy(update={"layers": profile})
    options = LiveOptions(python=str(interpreter), warm_up_turns=0, layers=asked)
    with live("vllm", options, run_id="run") as engine:
        log = run(engine, model=model)
    config = json.loads((tmp_path / "model.json").read_text())
    assert config["num_hidden_layers"] == started
    said = [text for text in log.ran.warnings if "tiny random one" in text]
    assert bool(said) is warned
    if warned:
        assert "tiny-llama (2 layers, 64 wide)" in said[0]
        assert "(24 layers, 64 wide)" in said[0]


def test_server_that_dies_in_the_middle(interpreter, tmp_path):
    """A server killed while a tool runs fails its cell in one line that counts the failed turns and
    names the log that is kept, and the next cell gets a new server."""

    class Killing(Recorded):
        def start(self, handle, demand, now_ps):
            os.kill(descendants(engine._running[1].pid)[0], signal.SIGKILL)
            super().start(handle, demand, now_ps)

    options = LiveOptions(python=str(interpreter), warm_up_turns=0)
    with live("vllm", options, run_id="run", log_folder=tmp_path / "logs") as engine:
        with pytest.raises(EngineError) as caught:
            run(engine, tools=Killing())
        kept = tmp_path / "logs" / "server-0.log"
        assert str(caught.value) == (
            "the server ended with status 137 in the middle of the cell: 1 turn failed; its log: "
            f"{kept}"
        )
        assert "serving marsbench" in kept.read_text()
        assert build_tables(run(engine)).sessions["status"].tolist() == ["ok"]


def test_a_dead_server_ends_its_cell_at_once(interpreter):
    """Of sessions that would come for an hour after the server's death, the first that fails ends the
    cell."""
    several = tuple(replace(SESSIONS[0], session_id=f"s{k}") for k in range(40))
    arrivals = ArrivalPlan(tuple(to_ps(0.0 if k < 20 else 3600.0) for k in range(40)))

    class Killing(Recorded):
        def start(self, handle, demand, now_ps):
            for pid in descendants(engine._running[1].pid):
                os.kill(pid, signal.SIGKILL)
            super().start(handle, demand, now_ps)

    options = LiveOptions(python=str(interpreter), warm_up_turns=0)
    plan = CellPlan(several, arrivals, Policies(), CONFIG, Killing())
    with (
        live("vllm", options, run_id="run") as engine,
        pytest.raises(EngineError, match=r"ended with status 137 .* turns? failed$"),
    ):
        engine.run(plan, EventLog())


def test_others_on_the_machine_are_a_warning(interpreter, monkeypatch):
    """A cell during which other programs had 40 % of the cores says so, and keeps the number."""
    monkeypatch.setattr(LoadMeter, "others", lambda _self, _outside_s: 0.4)
    options = LiveOptions(python=str(interpreter), warm_up_turns=0)
    with live("vllm", options, run_id="run") as engine:
        log = run(engine)
    assert log.ran.measured["live"]["others_cpu_share"] == 0.4
    assert any("other programs kept 40%" in text for text in log.ran.warnings)


def test_system_inside_the_engine_starts_no_server(interpreter, tmp_path):
    """What no stock server can run is refused before one is started."""
    with (
        live("vllm", LiveOptions(python=str(interpreter)), run_id="x") as engine,
        pytest.raises(EngineError, match="scheduler class"),
    ):
        engine.run(
            CellPlan(
                sessions=tuple(SESSIONS),
                arrivals=ArrivalPlan((0,)),
                policies=Policies(scheduling=object()),
                flags=CONFIG,
                tools=Recorded(),
            ),
            EventLog(),
        )
    assert not (tmp_path / "starts").exists()


def test_report_of_a_cell(fake):
    """The report counts turns, failures and retries, and says how late the client was."""
    with (
        fake(Behaviour(faults={0: "429", 2: "500"})) as (url, _),
        live("openai", LiveOptions(url=url, warm_up_turns=0), run_id="x") as engine,
    ):
        log = run(engine)
    found = log.ran.measured["live"]
    assert (found["turns"], found["failed_turns"], found["retried_turns"]) == (2, 1, 1)
    assert found["problems"] == {"HTTP 429": 1, "HTTP 500": 1}
    assert log.ran.warnings[0] == "1 of 2 turns failed: HTTP 500 (1)"
    assert found["send_error_s"]["p50"] >= 0
    assert found["wrong_prompt_lengths"] == found["wrong_output_lengths"] == 0
    assert engine.described() == {"url": url, "model": "fake"}
    assert build_tables(log).sessions["status"].tolist() != ["ok"]


def test_vllm_is_told_what_a_plug_in_needs(fake):
    """Session, turn, arrival, tools and whether it is the last go along, under the gateway's names."""
    with fake(Behaviour()) as (url, server):
        with live("vllm", LiveOptions(url=url, model="m", warm_up_turns=0), run_id="x") as engine:
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
        with live("vllm", LiveOptions(url=url), run_id="x") as engine:
            engine.run(
                CellPlan(
                    sessions=tuple(sessions),
                    arrivals=ArrivalPlan((0,)),
                    policies=Policies(),
                    flags=CONFIG,
                    tools=make_tool_executor("process", 1),
                    tool_cores=1,
                ),
                log,
            )
    (cpu_s,) = build_tables(log).calls["cpu_s"]
    assert cpu_s == pytest.approx(0.05, rel=0.3)


def test_server_that_cannot_start(tmp_path):
    """A server that ends at its start is an error with its own words, and its log is kept in the
    run's folder."""
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\ncase "$1" in -c) exit 0;; esac\necho no cards today; exit 3\n')
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    options = LiveOptions(python=str(script), start_timeout_s=60)
    with live("vllm", options, log_folder=tmp_path / "logs") as engine:
        with pytest.raises(EngineError, match="no cards today") as caught:
            run(engine)
        kept = tmp_path / "logs" / "server-0.log"
        assert str(kept) in str(caught.value)
    assert "no cards today" in kept.read_text()


def test_an_interpreter_without_the_server_is_refused_at_once(tmp_path):
    """The interpreter is named with what it lacks before any cell, and before anything is measured."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nexit 1\n")
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    with pytest.raises(EngineError, match=r"engine.params.python: .* has no package 'vllm'"):
        live("vllm", LiveOptions(python=str(script)))


def test_a_server_that_stalls_marks_its_cell(tmp_path, monkeypatch):
    """A server that is stopped for a second with a turn to run, where half a second is too long, has
    stalled once: the cell says so, with how long."""
    monkeypatch.setattr(core, "STALL_S", 0.5)
    port = free_port()
    argv = (sys.executable, "-m", "marsbench.engine.live.fake_server", "--port", str(port))
    command = ServerCommand((*argv, "--ttft-ms", "300"), f"http://127.0.0.1:{port}", "fake")

    class Stopping(Recorded):
        def start(self, handle, demand, now_ps):
            super().start(handle, demand, now_ps)
            (pid,) = descendants(server.pid)
            threading.Timer(0.1, os.kill, (pid, signal.SIGSTOP)).start()
            threading.Timer(1.2, os.kill, (pid, signal.SIGCONT)).start()

    with (
        running(command, tmp_path / "log") as server,
        live("vllm", LiveOptions(url=command.url, model="fake", warm_up_turns=0)) as engine,
    ):
        log = run(engine, tools=Stopping())
    (stall_s,) = log.ran.measured["live"]["stalls_s"]
    assert 0.9 < stall_s < 10
    assert "stalled" in log.ran.warnings[0]


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
    with pytest.raises(ConfigError, match=r"engine.params.layers: -1; use 0 or more"):
        split_options({"layers": -1})
    with pytest.raises(ConfigError, match=r"engine.params.stream_interval: 0; use 1 or more"):
        split_options({"stream_interval": 0})
    with pytest.raises(ConfigError, match="drop url"):
        split_options({"url": "http://h:1", "scheduler_cls": "a.B"})


def test_openai_needs_an_address():
    """There is nothing to start for engine openai."""
    with pytest.raises(EngineError, match=r"engine.params.url=http"):
        live("openai", LiveOptions(), run_id="x")


def test_model_name_is_asked_for(fake):
    """Without a model name the server's first one is used; no server, a clear error."""
    with fake(Behaviour()) as (url, _):
        assert first_model(url) == "fake"
    with pytest.raises(
        EngineError, match=r"/v1/models does not name a model .*engine.params.model"
    ):
        first_model("http://127.0.0.1:9")

"""`marsbench run` on a live engine: the same commands, folders and metrics as in virtual time."""

from __future__ import annotations

import json
import tempfile
import threading

import pytest
from threaded_server import in_a_thread

pytest.importorskip("aiohttp")

from typer.testing import CliRunner

from marsbench.cli import app
from marsbench.config import load_config
from marsbench.engine.live.fake_server import Behaviour, FakeServer
from marsbench.errors import ConfigError, EngineError
from marsbench.experiment import lab
from marsbench.experiment.lab import Lab
from marsbench.experiment.memo import Memo
from marsbench.experiment.pool import Pool

SESSION = {
    "trace_version": 1,
    "agent": "a",
    "model": "m",
    "turns": [
        {
            "new_input_tokens": 300,
            "output_tokens": 6,
            "tools": [{"name": "pytest", "class": "test", "wall_s": 0.05, "cpu_s": 0.02}],
        },
        {"new_input_tokens": 100, "output_tokens": 4, "tools": []},
    ],
}


@pytest.fixture
def url():
    """The address of a fake server."""
    with in_a_thread(
        FakeServer(Behaviour(ttft_s=0.01, itl_s=0.001, num_blocks=512, block_size=128))
    ) as address:
        yield address


@pytest.fixture
def trace(tmp_path):
    """Six sessions of two turns."""
    path = tmp_path / "small.jsonl"
    lines = [json.dumps({**SESSION, "session_id": f"s{k}"}) for k in range(6)]
    path.write_text("\n".join(lines) + "\n")
    return path


def run(trace, tmp_path, *more: str):
    """`marsbench run` on the tiny profile."""
    arguments = ["run", "-w", str(trace), "--profile", "tiny-cpu", "--split", "all", "-n", "6"]
    arguments += ["--out", str(tmp_path / "out"), "--quiet", "--no-cache", *more]
    return CliRunner().invoke(app, arguments)


def test_run_on_a_url(trace, tmp_path, url):
    """Two systems on a live engine with real tools: cells with all metrics, the client's report, the
    server's address, and ideals from the simulator."""
    done = run(
        trace, tmp_path, "-s", "vllm", "-s", "concur", "--engine", "vllm", "--rate", "20",
        "--tools", "process", "--tool-cores", "1", "-c", f"engine.params.url={url}", "--jobs", "2",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    cells = json.loads((tmp_path / "out" / "summary.json").read_text())["cells"]
    assert [(cell["system"], cell["engine"]) for cell in cells] == [
        ("vllm", "vllm"),
        ("concur", "vllm"),
    ]
    for cell in cells:
        assert cell["sessions"] == {"arrived": 6, "distinct": 6, "completed": 6, "failed": 0}
        assert cell["live"]["turns"] == 12
        assert cell["live"]["failed_turns"] == cell["live"]["wrong_prompt_lengths"] == 0
        assert cell["metrics"]["session_slowdown"]["mean"] > 0
        assert cell["metrics"]["ttft_s"]["p50"] >= 0.01
        assert sum(cell["metrics"]["latency_breakdown_s"].values()) == pytest.approx(
            cell["metrics"]["session_latency_s"]["mean"]
        )
    environment = json.loads((tmp_path / "out" / "environment.json").read_text())
    assert environment["server_flags"] == {"url": url, "model": "fake"}


def test_sessions_quicker_than_alone_are_a_warning(trace, tmp_path):
    """A server that answers at once is faster than its profile's simulation: the cell says so, on
    stderr and in the summary."""
    quick = Behaviour(num_blocks=512, block_size=128)
    with in_a_thread(FakeServer(quick)) as url:
        done = run(
            trace, tmp_path, "-s", "vllm", "--engine", "vllm", "--rate", "1000",
            "--profile", str(_slow_profile(tmp_path)), "-c", f"engine.params.url={url}",
            "--tools", "recorded",
        )  # fmt: skip
    assert done.exit_code == 0, done.output
    cells = json.loads((tmp_path / "out" / "summary.json").read_text())["cells"]
    warnings = [text for cell in cells for text in cell.get("warnings", ())]
    assert any("6 of 6 sessions took less time than their simulated" in text for text in warnings)


def _slow_profile(folder):
    """The tiny profile with steps of 10 s: no machine is so busy that it cannot be faster."""
    from marsbench.profiles import PROFILES

    text = (
        (PROFILES / "tiny-cpu.yaml")
        .read_text()
        .replace("o_step: 7500000000", "o_step: 10000000000000")
    )
    (folder / "slow.yaml").write_text(text)
    return folder / "slow.yaml"


def test_a_misfit_is_said_before_anything_is_simulated(trace, monkeypatch):
    """A model length that does not fit the KV cache is refused by the check, once, before the first
    simulation; at an address it is the server's own business."""
    monkeypatch.setattr(lab, "try_out", lambda *_, **__: pytest.fail("it simulated"))

    def check(*more):
        config = load_config(
            flags={"workload": [str(trace)], "profile": ["tiny-cpu"], "split": "all"},
            overrides=["engine=vllm", "engine.params.num_blocks=8", *more],
        )
        with Pool(1) as pool:
            Lab(config, Memo(None, print), pool, None).check()

    with pytest.raises(EngineError, match="max_model_len=32768 does not fit 8 KV blocks"):
        check()
    with pytest.raises(pytest.fail.Exception, match="it simulated"):
        check("engine.params.url=http://127.0.0.1:9")


def test_system_inside_the_engine_is_refused(trace, tmp_path, url):
    """A system that schedules inside the engine fails its cell with what to do; the other cell is
    kept, and the exit status says that something failed."""
    done = run(
        trace, tmp_path, "-s", "vllm", "-s", "autellix", "--engine", "openai", "--rate", "20",
        "-c", f"engine.params.url={url}",
    )  # fmt: skip
    assert done.exit_code == 1
    assert "scheduler class" in str(done.exception or done.output) + done.output
    cells = json.loads((tmp_path / "out" / "summary.json").read_text())["cells"]
    assert [cell["system"] for cell in cells] == ["vllm"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["engine=sim", "tools=process"], "needs a live engine"),
        (["engine=vllm", "engine.params.modell=x"], "did you mean 'model'"),
        (["engine=vllm", "tools=dockr"], "did you mean 'docker'"),
        (["engine=vlm"], "unknown engine 'vlm'"),
    ],
)
def test_wrong_names(trace, overrides, words):
    """Tools that really run need a live engine, and names are checked before a server is started."""

    class Silent:
        def __getattr__(self, name):
            return lambda *args: None

    config = load_config(
        flags={"workload": [str(trace)], "profile": ["tiny-cpu"], "split": "all"},
        overrides=overrides,
    )
    with Pool(1) as pool, pytest.raises(ConfigError, match=words):
        Lab(config, Memo(None, print), pool, Silent()).check()


def test_an_observer_of_a_live_run_gets_its_table(trace, tmp_path, url):
    """Events of a live engine are published as they happen; put in order of time, as the run does
    at its end, they are its events.parquet."""
    from marsbench.experiment.stream.observer import Observer

    with tempfile.TemporaryDirectory() as folder:
        address = f"ipc://{folder}/s"
        observer = Observer(address, keep=True)
        early: list[int] = []

        def watch() -> None:
            while observer.end is None:
                observer.watch(0.05)
                early.append(observer.status().get("sessions_over", 0))

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        done = run(
            trace, tmp_path, "-s", "vllm", "-s", "concur", "--engine", "vllm", "--rate", "20",
            "--tools", "process", "--tool-cores", "1", "-c", f"engine.params.url={url}",
            "--stream", address, "--stream-wait", "1",
        )  # fmt: skip
        thread.join(20)
        assert done.exit_code == 0, done.output
        assert observer.write(tmp_path / "seen.parquet") == 2
        observer.close()
    assert any(0 < over < 6 for over in early)  # while it ran, not afterwards
    own = (tmp_path / "out" / "events.parquet").read_bytes()
    assert (tmp_path / "seen.parquet").read_bytes() == own

"""Fake servers in threads of their own, and one real server of each kind for all tests that need it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from threaded_server import in_a_thread

from marsbench.engine.base import EngineConfig
from marsbench.engine.live.fake_server import Behaviour, FakeServer
from marsbench.engine.live.supervisor import descendants

HOLDER = """
import json, sys
from pathlib import Path
from marsbench.engine.base import EngineConfig
from marsbench.engine.live.kinds.base import Launch
from marsbench.engine.kind import attribute
from marsbench.engine.live.options import LiveOptions
from marsbench.engine.live.server import free_port, running
from marsbench.engine.live.tiny_model import write_tiny_model
folder = Path(sys.argv[1])
command = attribute(sys.argv[3])().command(
    Launch(
        Path(sys.executable),
        str(write_tiny_model(folder / "model", max_model_len=8192)),
        EngineConfig(**json.loads(sys.argv[2])),
        LiveOptions(device="cpu", stream_interval=1, worker_process=True),
        free_port(),
    )
)
with running(command, folder / "server.log", timeout_s=1200) as server:
    print(json.dumps({"url": command.url, "supervisor": server.pid}), flush=True)
    sys.stdin.read()
"""
VLLM_ENGINE = {
    "num_blocks": 40,  # 5,120 tokens: two of the tests' contexts do not fit together
    "block_size": 128,
    "max_num_batched_tokens": 2048,
    "max_num_seqs": 8,
    "max_model_len": 4096,
}
SGLANG_ENGINE = {**VLLM_ENGINE, "num_blocks": 5120, "block_size": 1}


@contextmanager
def _fake(behaviour: Behaviour) -> Iterator[tuple[str, FakeServer]]:
    """A fake server in a thread of its own; its address and its state."""
    server = FakeServer(behaviour)
    with in_a_thread(server) as url:
        yield url, server


@pytest.fixture
def fake():
    """``with fake(Behaviour(...)) as (url, server)``: a fake server for the block."""
    return _fake


@dataclass
class RealServer:
    """A server whose owner is another process, so that the owner can be killed."""

    url: str
    owner: subprocess.Popen
    supervisor: int

    def pids(self) -> list[int]:
        """The supervisor, the server and its children."""
        return [self.supervisor, *descendants(self.supervisor)]

    def kill_owner(self) -> list[int]:
        """SIGKILL the owner; those of the server's processes that are left after a while."""
        pids = self.pids()
        os.kill(self.owner.pid, signal.SIGKILL)
        self.owner.wait()
        deadline = time.monotonic() + 30
        while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < deadline:
            time.sleep(0.1)  # processes of others: nobody is told when they end
        return left


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.fixture(scope="session")
def vllm_engine() -> EngineConfig:
    """The flags the real server runs with."""
    return EngineConfig(**VLLM_ENGINE)


@pytest.fixture(scope="session")
def vllm_server(tmp_path_factory) -> Iterator[RealServer]:
    """vLLM on the CPU with a tiny random model: started once."""
    from marsbench.engine.vllm.runtime import installed_version

    if installed_version() is None:
        pytest.skip("vLLM is not installed")
    kind = "marsbench.engine.live.kinds.vllm.Vllm"
    with started(tmp_path_factory.mktemp("vllm"), VLLM_ENGINE, kind) as server:
        yield server


@pytest.fixture(scope="session")
def sglang_engine() -> EngineConfig:
    """The flags the real server runs with."""
    return EngineConfig(**SGLANG_ENGINE)


@pytest.fixture(scope="session")
def sglang_server(tmp_path_factory) -> Iterator[RealServer]:
    """SGLang on the CPU with a tiny random model: started once."""
    from marsbench.engine.sglang.runtime import installed_version

    if installed_version() is None:
        pytest.skip("SGLang is not installed")
    kind = "marsbench.engine.live.kinds.sglang.Sglang"
    with started(tmp_path_factory.mktemp("sglang"), SGLANG_ENGINE, kind) as server:
        yield server


@contextmanager
def started(folder: Path, flags: dict[str, int], kind: str) -> Iterator[RealServer]:
    """A server of this kind, owned by a process of its own."""
    owner = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), json.dumps(flags), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    line = owner.stdout.readline()
    assert line, "the server did not start; see the error above"
    found = json.loads(line)
    yield RealServer(found["url"], owner, found["supervisor"])
    owner.stdin.close()
    owner.stdout.close()
    owner.wait(60)
    assert not [pid for pid in (found["supervisor"],) if alive(pid)]

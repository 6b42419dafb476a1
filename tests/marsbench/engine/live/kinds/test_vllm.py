"""vLLM's command line says what the configuration says, and nothing that it would refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from marsbench.engine.base import EngineConfig
from marsbench.engine.live.kinds.base import Launch, check_length
from marsbench.engine.live.kinds.vllm import SCHEDULER, SYNC_SCHEDULER, Vllm
from marsbench.engine.live.options import LiveOptions
from marsbench.engine.plan import Identity
from marsbench.errors import EngineError

CONFIG = EngineConfig(
    num_blocks=40, block_size=32, max_num_seqs=7, policy="priority", max_model_len=1024
)
MARS = Identity("mars_impl.policy.MARS", "tiny-cpu", (("kv_target", 0.9),), 2, 7)


def command(policies=None, link=None, **options):
    chosen = LiveOptions(**{"model": "org/model", "device": "gpu", **options})
    given = Launch(Path("py"), "org/model", CONFIG, chosen, 1234, policies, link or {})
    return Vllm().command(given)


def test_each_engine_field_becomes_the_flag_of_the_same_meaning():
    """One block more than ours, for vLLM's null block; what the user adds comes last."""
    chosen = command(
        scheduler_cls="pkg.Sched", stream_interval=16, extra_flags="--tensor-parallel-size 2"
    )
    words = " ".join(chosen.argv)
    assert words.startswith("py -m vllm.entrypoints.openai.api_server --model org/model ")
    for flag in (
        "--num-gpu-blocks-override 41",
        "--block-size 32",
        "--max-num-seqs 7",
        "--scheduling-policy priority",
        "--port 1234",
        "--scheduler-cls pkg.Sched",
        "--stream-interval 16",
        "--enable-prompt-tokens-details",
    ):
        assert flag in words
    assert words.endswith("--tensor-parallel-size 2")
    assert "dummy" not in words
    assert chosen.url == "http://127.0.0.1:1234"
    assert "--stream-interval" not in command(stream_interval=1).argv, "vLLM's own default"


@pytest.mark.parametrize(("worker_process", "told"), [(False, "0"), (True, "1")])
def test_on_a_cpu_the_model_runs_beside_its_scheduler(worker_process, told):
    """One process on a CPU, unless vLLM's two are asked for; elsewhere vLLM decides."""
    chosen = command(device="cpu", worker_process=worker_process)
    assert chosen.env["VLLM_ENABLE_V1_MULTIPROCESSING"] == told
    assert f"VLLM_ENABLE_V1_MULTIPROCESSING={told} py -m vllm" in chosen.shown()
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in command().env


@pytest.mark.parametrize(
    ("flags", "scheduler"), [("", SCHEDULER), ("--no-async-scheduling", SYNC_SCHEDULER)]
)
def test_a_system_inside_the_server_is_told_to_its_scheduler(flags, scheduler):
    """Class, system, parameters and addresses stand on the command line; vLLM's asynchronous
    scheduler does not fit a server that was told to be synchronous."""
    argv = command(MARS, {"listen": "ipc://a", "publish": "ipc://b"}, extra_flags=flags).argv
    assert argv[argv.index("--scheduler-cls") + 1] == scheduler
    assert json.loads(argv[argv.index("--additional-config") + 1])["marsbench"] == {
        "system": "mars_impl.policy.MARS", "profile": "tiny-cpu", "params": {"kv_target": 0.9},
        "tool_cores": 2, "seed": 7, "listen": "ipc://a", "publish": "ipc://b",
    }  # fmt: skip


def test_sockets_go_where_they_are_told():
    """The folder is an environment variable of the server, and no part of what is shown of it."""
    given = Launch(Path("py"), "m", CONFIG, LiveOptions(device="gpu"), 1, sockets="/tmp/x/s")
    chosen = Vllm().command(given)
    assert chosen.env["VLLM_RPC_BASE_PATH"] == "/tmp/x/s"
    assert "VLLM_RPC_BASE_PATH" not in chosen.shown()
    assert "VLLM_RPC_BASE_PATH" not in command().env


def test_a_model_length_beyond_the_kv_cache_is_refused_before_a_server_is_started():
    """vLLM would end with a page of its own log; we say which flag to set to what."""
    with pytest.raises(EngineError, match=r"max_model_len=20480 or more num_blocks"):
        check_length(EngineConfig(num_blocks=160, block_size=128, max_model_len=32768))
    check_length(EngineConfig(num_blocks=160, block_size=128, max_model_len=20480))

"""SGLang's command line says what the configuration says, and nothing that it would refuse."""

from __future__ import annotations

import dataclasses
import json
from importlib import metadata
from pathlib import Path

import pytest

from marsbench.engine.base import EngineConfig
from marsbench.engine.live.kinds.base import Launch
from marsbench.engine.live.kinds.sglang import Sglang
from marsbench.engine.live.options import LiveOptions
from marsbench.engine.live.request import CompletionRequest
from marsbench.engine.plan import Identity
from marsbench.errors import EngineError

CONFIG = EngineConfig(
    num_blocks=640, block_size=8, max_num_seqs=7, max_model_len=1024, max_num_batched_tokens=512,
    policy="priority", retraction_policy="priority", schedule_policy="fcfs",
    radix_eviction_policy="tlru", prefill_decode_interval=3,
)  # fmt: skip


def command(config=CONFIG, **options):
    chosen = LiveOptions(**{"model": "org/model", "device": "gpu", **options})
    return Sglang().command(Launch(Path("py"), "org/model", config, chosen, 1234))


def test_each_engine_field_becomes_the_flag_of_the_same_meaning():
    """What the user adds comes last; on a GPU nothing is asked for that SGLang would not do itself."""
    chosen = command(stream_interval=16, extra_flags="--tp-size 2")
    words = " ".join(chosen.argv)
    assert words.startswith("py -m sglang.launch_server --model-path org/model ")
    for flag in (
        "--max-total-tokens 5120",
        "--page-size 8",
        "--max-running-requests 7",
        "--context-length 1024",
        "--chunked-prefill-size 512",
        "--prefill-decode-interval 3",
        "--enable-priority-scheduling --schedule-low-priority-values-first",
        "--retraction-policy priority",
        '--radix-eviction-policy-config {"threshold": 4096, "next_prompt_estimate": 512}',
        "--port 1234",
        "--stream-interval 16",
        "--enable-cache-report",
        "--enable-metrics",
    ):
        assert flag in words
    assert words.endswith("--tp-size 2")
    assert "dummy" not in words
    assert "cpu" not in words
    assert "SGLANG_USE_CPU_ENGINE" not in chosen.env
    assert "--disable-radix-cache" not in words
    assert chosen.url == "http://127.0.0.1:1234"


def test_on_a_cpu_and_without_weights():
    """SGLang's CPU platform, its attention in PyTorch, made-up weights, and no spinning."""
    chosen = command(device="cpu", model="")
    words = " ".join(chosen.argv)
    assert "--device cpu --attention-backend torch_native" in words
    assert "--load-format dummy" in words
    assert "--sleep-on-idle" in words
    assert chosen.env["SGLANG_USE_CPU_ENGINE"] == "1"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"host_chunks": 5}, "--host-kv 0"),
        ({"long_prefill_token_threshold": 9}, "SGLang has no long_prefill_token_threshold"),
        ({"enable_session_radix_cache": True}, "--engine sglang-core"),
        ({"max_num_batched_tokens": 500}, "whole pages of block_size=8"),
        ({"max_model_len": 9000}, "max_model_len=5120 or more num_blocks"),
    ],
)
def test_what_sglang_would_not_do_is_refused_before_it_is_started(flags, said):
    """One line that says which flag, and what to do."""
    with pytest.raises(EngineError, match=said) as refused:
        command(dataclasses.replace(CONFIG, **flags))
    assert "\n" not in str(refused.value)


def test_a_request_tells_its_turn():
    """Hints travel as SGLang's custom parameters; the priority is told even if it is 0, since a
    request without one goes last where SGLang schedules by priority."""
    body = Sglang().fields(CompletionRequest([1], 2, "run/3", 0, {"marsbench_turn": 1}))
    assert body == {
        "ignore_eos": True, "return_token_ids": True, "priority": 0, "session_id": "run/3",
        "custom_params": {"marsbench_turn": 1},
    }  # fmt: skip
    assert Sglang().fields(CompletionRequest([1], 2)).keys() == {
        "ignore_eos", "return_token_ids", "priority",
    }  # fmt: skip


MARS = Identity("mars_impl.policy.MARS", "tiny-cpu", (("kv_target", 0.9),), 2, 7)
INSIDE = Launch(Path("py"), "m", CONFIG, LiveOptions(device="gpu"), 1, MARS, {"listen": "ipc://a"})


def test_a_system_inside_the_server_is_told_to_its_plug_in():
    """System, parameters and addresses are in the environment; a stock server is told that there is
    none, whatever the user has set."""
    assert json.loads(Sglang().command(INSIDE).env["MARSBENCH_SGLANG"]) == {
        "system": "mars_impl.policy.MARS", "profile": "tiny-cpu", "params": {"kv_target": 0.9},
        "tool_cores": 2, "seed": 7, "listen": "ipc://a",
    }  # fmt: skip
    assert command().env["MARSBENCH_SGLANG"] == ""


def test_the_plug_in_is_announced_to_servers_that_we_start():
    """SGLang's environment need not have marsbench installed: a folder on its path says where the
    plug-in is."""
    (folder,) = Sglang().command(INSIDE).path
    (found,) = metadata.distributions(path=[folder])
    (entry,) = found.entry_points
    assert (entry.group, entry.name) == ("sglang.srt.plugins", "marsbench")
    assert callable(entry.load())


def test_a_server_that_started_without_its_plug_in_is_refused():
    """The plug-in says in the log that it is there; a stock server needs none."""
    Sglang().check_log(INSIDE, "...\nmarsbench: system mars inside SGLang 0.5.23\n...")
    Sglang().check_log(dataclasses.replace(INSIDE, policies=None), "")
    with pytest.raises(EngineError, match="started without the plug-in"):
        Sglang().check_log(INSIDE, "The server is fired up")


def test_a_scheduler_class_is_vllm_s():
    """A scheduler class is a flag of vLLM's: named for SGLang it is refused in one line."""
    with pytest.raises(EngineError, match="scheduler_cls is vLLM's"):
        command(scheduler_cls="pkg.Sched")

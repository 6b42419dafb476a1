"""The scheduler plug-in of a live server, run without one: steps overlap as vLLM's engine does."""

from __future__ import annotations

from collections import deque
from importlib.util import find_spec

import pytest

from marsbench.engine.base import EngineConfig
from marsbench.errors import ConfigError
from marsbench.events import Kind

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed"),
]

CONFIG = EngineConfig(
    num_blocks=120, max_model_len=4096, max_num_batched_tokens=256, max_num_seqs=16
)
PROFILE = "h100-nvl/qwen3-coder-30b-a3b"


@pytest.fixture(scope="module")
def vllm():
    """What the tests need of vLLM, imported once and quietly."""
    from types import SimpleNamespace

    from marsbench.engine.vllm.runtime import build_scheduler, quietly

    with quietly():
        from vllm.sampling_params import SamplingParams
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler
        from vllm.v1.outputs import ModelRunnerOutput
        from vllm.v1.request import Request

        from marsbench.engine.vllm.plugin import ServedScheduler
        from marsbench.engine.vllm.requests import content_hash
        from marsbench.engine.vllm.scheduler import AsyncPolicyScheduler

        build_scheduler(CONFIG, AsyncScheduler)  # the first one imports the rest
    init_none_hash(content_hash)
    hasher = get_request_block_hasher(16, content_hash)

    def request(number, prompt, output, **hints):
        params = SamplingParams(max_tokens=output, ignore_eos=True, extra_args=hints or None)
        return Request(
            f"{number:06d}", prompt, params, pooling_params=None, arrival_time=float(number),
            block_hasher=hasher,
        )  # fmt: skip

    return SimpleNamespace(
        build=lambda cls: build_scheduler(CONFIG, cls),
        request=request,
        output=ModelRunnerOutput,
        stock=AsyncScheduler,
        adapter=AsyncPolicyScheduler,
        served=ServedScheduler,
    )


def drain(vllm, scheduler, depth=2):
    """Run until nothing is left, with ``depth`` steps in flight. Returns the steps' schedules."""
    flight: deque = deque()
    steps = []
    while scheduler.get_num_unfinished_requests() or flight:
        step = scheduler.schedule()
        if step.num_scheduled_tokens:
            steps.append(dict(step.num_scheduled_tokens))
            sampled = [
                [] if scheduler.requests[i].is_prefill_chunk else [7]
                for i in step.num_scheduled_tokens
            ]
            flight.append((step, sampled))
        if flight and (len(flight) == depth or not step.num_scheduled_tokens):
            done, tokens = flight.popleft()
            ids = list(done.num_scheduled_tokens)
            index = {request_id: k for k, request_id in enumerate(ids)}
            scheduler.update_from_output(
                done, vllm.output(req_ids=ids, req_id_to_index=index, sampled_token_ids=tokens)
            )
    return steps


def prompt(session, length):
    return [session * 10_000 + k for k in range(length)]


def test_null_policies_keep_asynchronous_decisions(vllm):
    """On vLLM's asynchronous scheduler too, the adapter with null policies changes nothing."""
    schedules = []
    for cls in (vllm.stock, vllm.adapter):
        scheduler = vllm.build(cls)
        for number in range(12):
            tokens = prompt(number % 5, 100 + 50 * number)
            scheduler.add_request(vllm.request(number, tokens, 5 + number * 7 % 60))
        schedules.append(drain(vllm, scheduler))
    assert schedules[0] == schedules[1]
    assert len(schedules[0]) > 50


@pytest.mark.parametrize("system", ["vllm", "continuum", "autellix"])
def test_a_system_runs_inside_a_server(vllm, monkeypatch, system):
    """Six sessions of three turns end, their policies hear of it, and no block stays held."""
    monkeypatch.setenv("MARSBENCH_SYSTEM", system)
    monkeypatch.setenv("MARSBENCH_PROFILE", PROFILE)
    scheduler = vllm.build(vllm.served)
    heard = []
    scheduler._listeners.append(heard.append)
    for turn in range(3):
        for session in range(6):
            scheduler.add_request(
                vllm.request(
                    turn * 6 + session, prompt(session, 150 + 100 * turn), 10,
                    marsbench_session=session, marsbench_turn=turn, marsbench_tools=["ls"],
                    marsbench_last=int(turn == 2),
                )
            )  # fmt: skip
        drain(vllm, scheduler)
    kinds = [event.kind for event in heard]
    assert kinds.count(Kind.SESSION_ARRIVE) == kinds.count(Kind.SESSION_END) == 6
    assert kinds.count(Kind.GPU_END) == kinds.count(Kind.GPU_FIRST_TOKEN) == 18
    assert kinds.count(Kind.GPU_SCHED_FIRST) == 18
    assert kinds.count(Kind.TOOL_START) == 12, "what the last turn asks for never runs"
    assert kinds.count(Kind.TOOL_END) == 12
    hits = [event.get("cached_tokens") for event in heard if event.kind == Kind.GPU_SCHED_FIRST]
    assert sum(hits) > 0
    for session in range(6):
        scheduler.session_ended(session)
    assert scheduler.view.free_blocks == CONFIG.num_blocks
    assert not scheduler._turns
    assert not scheduler._cached


def test_requests_without_hints_are_sessions_by_their_id(vllm, monkeypatch):
    """``session_id`` alone makes turns of a session; without it each request is one of its own."""
    monkeypatch.setenv("MARSBENCH_SYSTEM", "vllm")
    monkeypatch.setenv("MARSBENCH_PROFILE", PROFILE)
    scheduler = vllm.build(vllm.served)
    described = []
    for number, session_id in enumerate(["a", "a", None, "b"]):
        request = vllm.request(number, prompt(number, 20), 2)
        request.session_id = session_id
        scheduler.add_request(request)
        info = scheduler.turn(request).info
        described.append((info.session, info.turn_index, info.is_last))
    assert described == [(0, 0, False), (0, 1, False), (1, 0, True), (2, 0, False)]
    drain(vllm, scheduler)


@pytest.mark.parametrize(
    ("system", "profile", "problem"),
    [
        ("", PROFILE, r"marsbench\.system is missing"),
        ("vllm", "", r"marsbench\.profile is missing"),
        ("oracle", PROFILE, "sees the future"),
        ("continum", PROFILE, "did you mean 'continuum'"),
    ],
)
def test_a_wrong_option_is_one_clear_line(vllm, monkeypatch, system, profile, problem):
    """What is missing or wrong in the server's options is named."""
    monkeypatch.setenv("MARSBENCH_SYSTEM", system)
    monkeypatch.setenv("MARSBENCH_PROFILE", profile)
    with pytest.raises(ConfigError, match=problem):
        vllm.build(vllm.served)

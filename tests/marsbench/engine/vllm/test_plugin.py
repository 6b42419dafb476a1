"""The scheduler plug-in of a live server, run without one: steps overlap as vLLM's engine does."""

from __future__ import annotations

from collections import deque
from importlib.util import find_spec

import pytest

from marsbench.engine.base import EngineConfig
from marsbench.errors import ConfigError
from marsbench.events import Kind
from marsbench.scheduler.base import EngineOrder, NoRetention

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

        from marsbench.engine.vllm.plugin import ServedScheduler, SyncServedScheduler
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
        sync=SyncServedScheduler,
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


class Asked(EngineOrder):
    """vLLM's order; notes how far each prefill was that it was asked about."""

    def __init__(self):
        self.asked = []

    def prefill_quantum(self, turn, view, now_s):
        self.asked.append(turn.computed_tokens)


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
    scheduler.hosted.listeners.append(heard.append)
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
    assert not scheduler.hosted.cached


@pytest.mark.parametrize("cls", ["served", "sync"])
def test_a_turn_of_one_token_has_its_first_token_before_its_end(vllm, monkeypatch, cls):
    """The step that makes the only token of a turn also ends it: policies hear both, in order, and
    of a turn that is still prefilling nothing."""
    monkeypatch.setenv("MARSBENCH_SYSTEM", "vllm")
    monkeypatch.setenv("MARSBENCH_PROFILE", PROFILE)
    scheduler = vllm.build(getattr(vllm, cls))
    heard = []
    scheduler.hosted.listeners.append(heard.append)
    scheduler.add_request(vllm.request(0, prompt(0, 20), 1))
    scheduler.add_request(vllm.request(1, prompt(1, 700), 3))  # three steps of 256 tokens
    drain(vllm, scheduler, depth=2 if cls == "served" else 1)
    told = [
        (event.session, event.kind)
        for event in heard
        if event.kind in {Kind.GPU_SCHED_FIRST, Kind.GPU_FIRST_TOKEN, Kind.GPU_END}
    ]
    assert told == [
        (0, Kind.GPU_SCHED_FIRST),
        (1, Kind.GPU_SCHED_FIRST),
        (0, Kind.GPU_FIRST_TOKEN),
        (0, Kind.GPU_END),
        (1, Kind.GPU_FIRST_TOKEN),
        (1, Kind.GPU_END),
    ]
    assert not scheduler.hosted.tokenless


def test_policies_read_queues_without_copies(vllm, monkeypatch):
    """The queues of a view have a length, an order and places, and follow the scheduler's."""
    monkeypatch.setenv("MARSBENCH_SYSTEM", "vllm")
    monkeypatch.setenv("MARSBENCH_PROFILE", PROFILE)
    scheduler = vllm.build(vllm.served)
    waiting = scheduler.view.waiting
    for number in range(3):
        scheduler.add_request(vllm.request(number, prompt(number, 20), 2))
    assert len(waiting) == 3
    assert [turn.sequence for turn in waiting] == [0, 1, 2]
    assert [turn.sequence for turn in reversed(waiting)] == [2, 1, 0]
    assert waiting[-1].sequence == 2
    assert [turn.sequence for turn in waiting[:2]] == [0, 1]
    scheduler.schedule()
    assert not waiting
    assert [turn.session for turn in scheduler.view.running] == [0, 1, 2]


def test_decodes_that_fit_ask_nothing(vllm):
    """While turns only decode and blocks abound, vLLM's own functions run; a turn that waits or
    prefills, or blocks running short, brings the policy's in."""
    from marsbench.engine.vllm.scheduler import MonotonicHost

    scheduler = vllm.build(vllm.adapter)
    host = MonotonicHost()
    scheduler.use(Asked(), NoRetention(), host, host)
    scheduler.add_request(vllm.request(0, prompt(0, 300), 40))
    manager = scheduler.kv_cache_manager
    hooked = []
    step = scheduler.schedule

    def schedule():
        done = step()
        hooked.append((scheduler.need_mamba_block_aligned_split,
                       manager.allocate_slots == scheduler._allocate_slots))  # fmt: skip
        return done

    scheduler.schedule = schedule
    drain(vllm, scheduler)
    assert hooked[0] == (True, True), "it waits"
    assert hooked[1] == (True, False), "its second chunk of 256 + 44 tokens"
    assert set(hooked[2:]) == {(False, False)}
    assert scheduler.order.asked == [0, 256]


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
        info = scheduler._turns.info(request.request_id)
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


def test_no_block_stays_held_whatever_clients_do(vllm, monkeypatch):
    """Memory for a third of the sessions; clients leave while their turn waits or runs, sessions never
    come back. Once everybody has been given up, every block is free and nothing is remembered."""
    import numpy as np
    from vllm.v1.request import RequestStatus

    monkeypatch.setenv("MARSBENCH_SYSTEM", "mars")
    monkeypatch.setenv("MARSBENCH_PROFILE", PROFILE)
    scheduler = vllm.build(vllm.served)
    dice = np.random.default_rng(7)
    turns = dict.fromkeys(range(40), 0)
    number = left = 0
    for _ in range(60):
        for session in dice.choice(sorted(turns), size=min(8, len(turns)), replace=False):
            tokens = prompt(int(session), 100 + 80 * turns[session])
            scheduler.add_request(
                vllm.request(
                    number, tokens, 12, marsbench_session=int(session),
                    marsbench_turn=turns[session], marsbench_tools=["ls"],
                )
            )  # fmt: skip
            turns[session] += 1
            number += 1
        for _ in range(dice.integers(1, 4)):
            step = scheduler.schedule()
            ids = list(step.num_scheduled_tokens)
            sampled = [[] if scheduler.requests[i].is_prefill_chunk else [7] for i in ids]
            gone = [i for i in scheduler.requests if dice.random() < 0.05]
            left += len(gone)
            scheduler.finish_requests(gone, RequestStatus.FINISHED_ABORTED)
            index = {request_id: k for k, request_id in enumerate(ids)}
            scheduler.update_from_output(
                step, vllm.output(req_ids=ids, req_id_to_index=index, sampled_token_ids=sampled)
            )
        drain(vllm, scheduler, depth=1)
        turns = {s: n for s, n in turns.items() if n < 12 and dice.random() > 0.02}
    assert left > 20
    assert scheduler.view.pinned_blocks <= CONFIG.num_blocks
    for session in range(40):
        scheduler.session_ended(session)
    assert scheduler.view.free_blocks == CONFIG.num_blocks
    assert scheduler.view.pinned_blocks == 0
    assert not scheduler._turns
    assert not scheduler.hosted.cached
    assert not scheduler.hosted.tokenless

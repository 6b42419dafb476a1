"""Policies inside SGLang's scheduler: order, quantum, victim, retention."""

from __future__ import annotations

import dataclasses
import math
from importlib.util import find_spec

import pytest
from small_cores import Keep

from marsbench.core import to_ps
from marsbench.engine.adversary import make_case
from marsbench.engine.parity import first_difference, run
from marsbench.errors import PolicyError
from marsbench.events import Unpin
from marsbench.scheduler.base import EngineOrder, NoRetention, Retain
from marsbench.system import Policies

pytestmark = [
    pytest.mark.sglang,
    pytest.mark.skipif(find_spec("sglang") is None, reason="SGLang is not installed"),
]


class Order(EngineOrder):
    """A scheduling policy with some answers given."""

    def __init__(self, *, key=None, quantum=None, victim=None, skips=False):
        self.resort_s = 0.0
        self.key = key or (lambda turn, view: (float(turn.sequence),))
        self.quantum = quantum
        self.victim = victim or (lambda turn: ())
        self.skips = skips
        self.told = []

    def waiting_key(self, turn, view, now_s):
        return self.key(turn, view)

    def prefill_quantum(self, turn, view, now_s):
        return self.quantum(turn) if callable(self.quantum) else self.quantum

    def on_scheduled(self, turn, new_tokens, quantum, now_s):
        self.told.append((turn.session, new_tokens, quantum))

    def victim_key(self, turn, view, now_s):
        return self.victim(turn)

    def skip_blocked(self):
        return self.skips


def sglang_cell(seed, **flags):
    """A case of the adversary with memory for its largest turn and no flags of vLLM's."""
    case = make_case(700 + seed, policies=True)
    page = case.config.block_size
    largest = max(p.prompt_tokens + p.output_tokens for s in case.sessions for p in s.turns)
    blocks = max(case.config.num_blocks, -(-(largest + 2 * page + 4) // page))
    neutral = {
        "long_prefill_token_threshold": 0,
        "long_prefill_token_threshold_adaptive": False,
        "scheduler_reserve_full_isl": True,
        "enable_prefix_caching": True,
        "policy": "fcfs",
        "num_blocks": blocks,
        "max_num_batched_tokens": max(case.config.max_num_batched_tokens, 2 * page),
    }
    return case, dataclasses.replace(case.config, **{**neutral, **flags})


@pytest.mark.parametrize("seed", range(3))
def test_null_policies_change_nothing(seed):
    """The hooks with null policies decide as SGLang alone, step by step."""
    from marsbench.engine.sglang.core import SglangCore

    case, config = sglang_cell(seed, schedule_policy=("fcfs", "lpm", "hrrn")[seed % 3])
    cost = StepCostOf.cost
    logs = [
        run(
            lambda listener, adapt=adapt: SglangCore(
                config, cost, Policies(), listener, adapt_always=adapt
            ),
            case.sessions,
            until_ps=to_ps(0.6),
        )
        for adapt in (False, True)
    ]
    assert first_difference(*logs, ("sglang", "hooks")) is None


@pytest.mark.parametrize("seed", range(8))
def test_wild_policies_keep_the_books_and_repeat(seed):
    """Whatever policies answer, no token is lost or held twice after a step, every turn ends or the
    cut comes, and a second run is the same.
    """
    from marsbench.engine.sglang.core import SglangCore

    class Checked(SglangCore):
        def _run(self, batch):
            finished = super()._run(batch)
            self.check_books()
            return finished

    case, config = sglang_cell(seed)
    logs = [
        run(
            lambda listener, kind=kind: kind(config, StepCostOf.cost, case.policies(), listener),
            case.sessions,
            until_ps=to_ps(0.6),
        )
        for kind in (Checked, SglangCore)
    ]
    assert first_difference(*logs, ("once", "again")) is None


class StepCostOf:
    """Steps that take about as long as a real engine's."""

    from marsbench.engine.cost import StepCost

    cost = StepCost.from_coefficients(
        c_tok=3_000_000, c_pair=400, weights=[8_000_000_000], m_ctx=30_000,
        o_step=2_000_000_000, o_seq=10_000_000,
    )  # fmt: skip


def test_keys_order_the_queue(bench):
    """The waiting turn with the smallest key goes first, whatever came first."""
    order = Order(key=lambda turn, view: (-float(turn.session),))
    core, log = bench.core(
        dataclasses.replace(bench.ROOMY, max_num_seqs=1), Policies(scheduling=order)
    )
    for session in range(3):
        core.submit(bench.request(session, 10, 2))
    bench.finish(core, 0)
    assert bench.first_scheduled(log) == [2, 1, 0]


def test_keys_see_prefix_hits(bench):
    """A key made of ``cached_tokens`` finds the turn with its context in the tree."""
    order = Order(key=lambda turn, view: (-float(view.cached_tokens(turn)),))
    core, log = bench.core(
        dataclasses.replace(bench.ROOMY, max_num_seqs=1), Policies(scheduling=order)
    )
    core.submit(bench.request(0, 40, 8))
    now = bench.finish(core, 0)
    core.submit(bench.request(1, 40, 1, ready_ms=now // bench.MS))
    core.submit(bench.request(0, 60, 1, turn=1, reused=48, ready_ms=now // bench.MS))
    bench.finish(core, now)
    assert bench.first_scheduled(log) == [0, 0, 1]


def test_a_quantum_clips_chunks_and_the_policy_hears_of_them(bench):
    """At most 30 tokens of one prompt a step; the rest of the step goes to a turn that fits whole."""
    order = Order(quantum=30)
    core, log = bench.core(bench.ROOMY, Policies(scheduling=order))
    core.submit(bench.request(0, 70, 1))
    core.submit(bench.request(1, 20, 1))
    bench.finish(core, 0)
    assert [step.scheduled for step in log.steps] == [
        ((0, 0, 30), (1, 0, 20)), ((0, 0, 30),), ((0, 0, 10),),
    ]  # fmt: skip
    assert order.told == [(0, 30, 30), (1, 20, 30), (0, 30, 30), (0, 10, 30)]


def test_one_prefill_at_a_time_is_unfinished(bench):
    """Session 0 leaves 34 tokens of each step. Session 1 would be cut off there and waits, session 2
    fits whole and does not.
    """
    order = Order(quantum=lambda turn: 30 if turn.session == 0 else None)
    core, log = bench.core(bench.ROOMY, Policies(scheduling=order))
    core.submit(bench.request(0, 70, 1))
    core.submit(bench.request(1, 100, 1))
    core.submit(bench.request(2, 20, 1))
    bench.finish(core, 0)
    assert [step.scheduled for step in log.steps] == [
        ((0, 0, 30), (2, 0, 20)), ((0, 0, 30),), ((0, 0, 10), (1, 0, 54)), ((1, 0, 46),),
    ]  # fmt: skip


def test_memory_is_kept_for_the_rest_of_a_prefill(bench, short_answers):
    """Of 640 tokens session 0 will need 540, of which a quantum lets it take 30 a step: sessions 1 to
    4 need 90 each, come in whole beside its chunks, and only one of them may before it is done."""
    order = Order(quantum=lambda turn: 30 if turn.session == 0 else None)
    core, log = bench.core(policies=Policies(scheduling=order))
    core.submit(bench.request(0, 500, 30))
    for session in range(1, 5):
        core.submit(bench.request(session, 30, 30))
    bench.finish(core, 0)
    began = [step for step in log.steps if any(turn[:2] == (0, 0) for turn in step.scheduled)]
    beside = {turn[0] for step in began[:17] for turn in step.scheduled}
    assert beside == {0, 1}


def test_a_quantum_below_one_stops_the_run(bench):
    """A quantum of nothing would wait for ever."""
    core, _ = bench.core(bench.ROOMY, Policies(scheduling=Order(quantum=0)))
    core.submit(bench.request(0, 70, 1))
    with pytest.raises(PolicyError, match="at least 1 token"):
        core.advance(0, bench.MS)


def test_turns_pass_one_that_does_not_fit(bench, short_answers):
    """Session 1 does not fit beside session 0; only if the policy skips it, session 2 goes first."""
    for skips, expected in ((False, [0, 1, 2]), (True, [0, 2, 1])):
        core, log = bench.core(policies=Policies(scheduling=Order(skips=skips)))
        core.submit(bench.request(0, 300, 60))
        now = core.advance(0, 10 * bench.MS)
        core.submit(bench.request(1, 400, 2, ready_ms=10))
        core.submit(bench.request(2, 10, 2, ready_ms=10))
        bench.finish(core, now)
        assert bench.first_scheduled(log) == expected


def test_the_policy_names_who_is_retracted(bench, short_answers):
    """Answers outgrow the memory: SGLang gives up the longest prompt, the policy here the first."""
    victims = {}
    first = Order(victim=lambda turn: (-turn.session,))
    for name, order in (("sglang", EngineOrder()), ("first", first)):
        core, log = bench.core(policies=Policies(scheduling=order))
        for session in range(5):
            core.submit(bench.request(session, 60 + session, 250))
        bench.finish(core, 0)
        victims[name] = bench.told(log, "preempted")[0][0]
    assert victims["first"] == 0
    assert victims["sglang"] != 0


def flood(bench, retention):
    """Tokens that session 0 finds again after session 1 has filled the memory."""
    core, log = bench.core(policies=Policies(retention=retention))
    core.submit(bench.request(0, 200, 2))
    now = bench.finish(core, 0)
    core.submit(bench.request(1, 380, 10, ready_ms=now // bench.MS))
    now = bench.finish(core, now)
    core.submit(bench.request(2, 300, 2, ready_ms=now // bench.MS))
    now = bench.finish(core, now)
    core.submit(bench.request(0, 230, 1, turn=1, reused=202, ready_ms=now // bench.MS))
    bench.finish(core, now)
    hits = [v[0] for s, t, v in bench.told(log, "scheduled first") if (s, t) == (0, 1)]
    return hits[0], bench.told(log, "unpinned")


def test_a_pin_keeps_kv_from_eviction(bench, short_answers):
    """Without the pin the flood evicts session 0's KV; with it all 201 tokens are found again, and
    the return gives the pin up.
    """
    stock, _ = flood(bench, NoRetention())

    class KeepFirst(Keep):
        def on_turn_end(self, turn, tool_names, is_last, view, now_s):
            return Retain(math.inf) if turn.session == 0 and turn.turn_index == 0 else None

    kept, unpinned = flood(bench, KeepFirst(yields=False))
    assert stock < 201
    assert kept == 201
    assert [(s, t, v[:2]) for s, t, v in unpinned] == [(0, 0, (201, int(Unpin.RETURN)))]


def test_a_pin_ends_at_its_time(bench):
    """A pin of 5 ms is given up before the first step after it."""
    core, log = bench.core(policies=Policies(retention=Keep(0.005)))
    core.submit(bench.request(0, 40, 2))
    now = bench.finish(core, 0)
    assert core.view.pinned_blocks == 41
    core.submit(bench.request(1, 10, 1, ready_ms=now // bench.MS + 10))
    bench.finish(core, now + 10 * bench.MS)
    assert bench.told(log, "unpinned")[0] == (0, 0, (41, int(Unpin.EXPIRE), 10 * bench.MS))


def test_pins_that_yield_make_room_for_a_waiting_turn(bench, short_answers):
    """A turn that does not fit beside two pins takes the larger one."""
    core, log = bench.core(policies=Policies(retention=Keep()))
    for session, prompt in ((0, 100), (1, 200)):
        core.submit(bench.request(session, prompt, 2, ready_ms=session * 100))
        bench.finish(core, session * 100 * bench.MS)
    core.submit(bench.request(2, 400, 2, ready_ms=300, last=True))
    bench.finish(core, 300 * bench.MS)
    assert [(s, v[:2]) for s, _, v in bench.told(log, "unpinned")] == [
        (1, (201, int(Unpin.PRESSURE)))
    ]


def test_pins_that_do_not_yield_cannot_wedge_the_engine(bench):
    """If nothing runs, a waiting turn takes what it needs from pins that yield to nobody."""
    core, log = bench.core(policies=Policies(retention=Keep(yields=False)))
    core.submit(bench.request(0, 400, 2))
    now = bench.finish(core, 0)
    core.submit(bench.request(1, 500, 2, ready_ms=now // bench.MS, last=True))
    bench.finish(core, now)
    assert bench.told(log, "finished")[1][0] == 1
    assert bench.told(log, "unpinned")[0][0] == 0


def test_a_running_turn_takes_pins_before_anybody_is_retracted(bench, short_answers):
    """Decoding beyond what was reserved takes memory back from pins, which yield to no waiting
    turn, and preempts nobody.
    """
    core, log = bench.core(policies=Policies(retention=Keep(yields=False)))
    core.submit(bench.request(0, 300, 2))
    now = bench.finish(core, 0)
    core.submit(bench.request(1, 50, 400, ready_ms=now // bench.MS, last=True))
    bench.finish(core, now)
    assert [(s, v[1]) for s, _, v in bench.told(log, "unpinned")] == [(0, int(Unpin.PRESSURE))]
    assert not bench.told(log, "preempted")


def test_pins_stay_within_their_share(bench, short_answers):
    """A tenth of 640 tokens: 41 fit, 41 more do not."""
    core, log = bench.core(policies=Policies(retention=Keep(share=0.1)))
    for session in range(2):
        core.submit(bench.request(session, 40, 2, ready_ms=100 * session))
        bench.finish(core, 100 * session * bench.MS)
    assert [s for s, _, _ in bench.told(log, "pinned")] == [0]
    core.session_ended(0)
    assert bench.told(log, "unpinned")[0][2][1] == int(Unpin.END)
    core.check_integrity()


def test_a_shared_prefix_is_pinned_once(bench, short_answers):
    """Two sessions share 50 tokens: each pin counts them, the engine holds them once."""
    core, log = bench.core(policies=Policies(retention=Keep()))
    for session in range(2):
        turn = bench.request(session, 80, 2, ready_ms=100 * session, reused=50)
        turn.prefix_id, turn.prefix_tokens = 0, 50
        core.submit(turn)
        bench.finish(core, 100 * session * bench.MS)
    assert [v[0] for _, _, v in bench.told(log, "pinned")] == [81, 81]
    assert core.view.pinned_blocks == 81 + 31

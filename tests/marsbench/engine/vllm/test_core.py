"""Engine vllm-core: vLLM's scheduler in virtual time, with and without the policy adapter."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from small_cores import COST, MS, Keep, finish, request, told

from marsbench.engine.adversary import UNTIL_PS, WildRetention, make_case
from marsbench.engine.base import EngineConfig
from marsbench.engine.parity import RunLog, first_difference, run
from marsbench.errors import EngineError, PolicyError
from marsbench.events import Unpin
from marsbench.scheduler.base import EngineOrder, NoRetention
from marsbench.system import Policies

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed"),
]

CONFIG = EngineConfig(num_blocks=20, max_model_len=4096, max_num_batched_tokens=64, max_num_seqs=32)


def core_of(policies=None, config=CONFIG, **options):
    from marsbench.engine.vllm.core import VllmCore

    log = RunLog()
    core = VllmCore(config, COST, policies or Policies(), log, **options)
    core.trace = log
    return core, log


def test_chunked_prefill_then_decode():
    """100 tokens at 64 a step are two prefill steps; the second makes the first of 3 tokens."""
    core, log = core_of()
    core.submit(request(0, 100, 3))
    end = finish(core, 0)
    assert [step.scheduled for step in log.steps] == [
        ((0, 0, 64),), ((0, 0, 36),), ((0, 0, 1),), ((0, 0, 1),),
    ]  # fmt: skip
    assert end == 4 * MS
    assert [(m.what, m.at_ps // MS) for m in log.moments] == [
        ("scheduled first", 0), ("first token", 2), ("finished", 4),
    ]  # fmt: skip


def test_advance_stops_at_a_finish_or_at_the_limit():
    """A step that began before the limit is finished; nothing to do returns the limit."""
    core, _ = core_of()
    assert core.advance(0, 5 * MS) == 5 * MS
    core.submit(request(0, 64, 2, ready_ms=5))
    core.submit(request(1, 1, 9, ready_ms=5))
    assert core.advance(5 * MS, 5 * MS) == 5 * MS
    assert core.advance(5 * MS, 5 * MS + 1) == 6 * MS
    assert core.advance(6 * MS, 100 * MS) == 7 * MS  # turn 0 finished
    assert not core.idle()


def test_a_continuation_hits_full_blocks_only():
    """40 prompt + 8 output tokens leave 47 with KV: 2 full blocks are hit next time."""
    core, log = core_of()
    core.submit(request(0, 40, 8))
    now = finish(core, 0)
    core.submit(request(0, 60, 1, turn=1, reused=48))
    finish(core, now)
    assert told(log, "scheduled first")[1] == (0, 1, (32, 28))
    assert told(log, "finished")[1] == (0, 1, (28, 0, 32))


def test_rewritten_content_is_not_hit():
    """Only the leading 20 of 48 tokens are kept: one full block of 16 is the same content."""
    core, log = core_of()
    core.submit(request(0, 40, 8))
    now = finish(core, 0)
    core.submit(request(0, 60, 1, turn=1, reused=20))
    finish(core, now)
    assert told(log, "scheduled first")[1][2] == (16, 44)


def test_referenced_blocks_are_integrated_over_time():
    """3 blocks for the 2 ms of a 40-token turn with 2 tokens; a pin of 2 blocks for 10 ms more."""
    policies = Policies(retention=Keep())
    core, _ = core_of(policies)
    core.submit(request(0, 40, 2))
    now = finish(core, 0)
    core.submit(request(0, 40, 1, turn=1, reused=20, ready_ms=12))
    assert now == 2 * MS
    assert core.stats.referenced_block_ps == (3 * 2 + 2 * 10) * MS


@pytest.mark.parametrize("seed", range(25))
def test_null_policies_change_nothing(seed):
    """The adapter with null policies decides as vLLM's own class, step by step."""
    from marsbench.engine.vllm.core import VllmCore

    case = make_case(500 + seed)
    logs = [
        run(
            lambda listener, adapt=adapt: VllmCore(
                case.config, COST, Policies(), listener, adapt_always=adapt
            ),
            case.sessions,
            until_ps=UNTIL_PS,
        )
        for adapt in (False, True)
    ]
    assert first_difference(*logs, ("vllm", "adapter")) is None


@pytest.mark.parametrize("seed", range(10))
def test_vllms_order_as_a_policy_changes_nothing(seed):
    """A policy that answers what FCFS would decide as a policy gives vLLM's own decisions."""
    from marsbench.engine.vllm.core import VllmCore

    class Fcfs(EngineOrder):
        """Not the null policy to the engine, but the same answers. A preempted turn has an
        earlier place than any later one, so the newest preempted goes last among them.
        """

        def __init__(self):
            self.preempted = {}

        def waiting_key(self, turn, view, now_s):
            key = (turn.session, turn.turn_index)
            latest = self.preempted.setdefault((key, turn.num_preemptions), len(self.preempted))
            return (0.0, -latest) if turn.num_preemptions else (1.0, float(turn.sequence))

    case = make_case(900 + seed)
    config = dataclasses.replace(case.config, policy="fcfs", num_blocks=case.config.num_blocks * 2)
    logs = [
        run(
            lambda listener, p=p: VllmCore(config, COST, p, listener),
            case.sessions,
            until_ps=UNTIL_PS,
        )
        for p in (Policies(), Policies(scheduling=Fcfs()))
    ]
    if any(len(step.preempted) > 1 for step in logs[0].steps):
        pytest.skip("vLLM orders turns preempted in one step by the step")
    assert first_difference(*logs, ("vllm", "policy")) is None


def test_a_pin_keeps_blocks_from_eviction():
    """Without the pin other sessions evict the first one's tail; with it all full blocks are hit."""
    hits = {}
    for name, retention in (("stock", NoRetention()), ("keep", Keep(yields=False))):
        core, log = core_of(Policies(retention=retention))
        core.submit(request(0, 100, 2))  # 101 tokens with KV: 7 blocks, 6 of them full
        now = finish(core, 0)
        core.submit(request(1, 200, 2))  # 13 of the 14 others; its last is not full
        now = finish(core, now)
        core.submit(request(2, 100, 2))  # 7: 2 without content, 5 of the least recently used 6
        now = finish(core, now)
        core.session_ended(1)
        core.session_ended(2)
        core.submit(request(0, 110, 2, turn=1, reused=102))
        finish(core, now)
        hits[name] = told(log, "scheduled first")[-1][2][0]
    assert hits == {"stock": 16, "keep": 96}


def test_pins_are_released_when_the_next_turn_is_scheduled():
    """The pin ends with RETURN at the time of the first step of the session's next turn."""
    core, log = core_of(Policies(retention=Keep()))
    core.submit(request(0, 40, 2))
    now = finish(core, 0)
    core.submit(request(0, 60, 2, turn=1, reused=42, ready_ms=50, last=True))
    finish(core, 50 * MS)
    assert now == 2 * MS
    assert told(log, "pinned") == [(0, 0, (2, 9 * 10**18))]
    assert told(log, "unpinned") == [(0, 0, (2, int(Unpin.RETURN), 48 * MS))]
    assert core.view.free_blocks == 20


@pytest.mark.parametrize("spares", [False, True])
def test_pins_expire_unless_spared_for_a_waiting_turn(spares):
    """A pin of 5 ms is gone at the first step after; spared if its next turn waits by then."""
    core, log = core_of(Policies(retention=Keep(0.005, spares=spares)))
    core.submit(request(0, 40, 2))
    finish(core, 0)  # pinned from 2 to 7 ms
    core.submit(request(0, 60, 2, turn=1, reused=42, ready_ms=9))
    finish(core, 9 * MS)
    reason = Unpin.RETURN if spares else Unpin.EXPIRE
    assert told(log, "unpinned")[0] == (0, 0, (2, int(reason), 7 * MS))
    assert told(log, "scheduled first")[1][2] == (32, 28)  # not evicted in either case


def test_a_growing_turn_takes_the_largest_pin_before_anything_is_preempted():
    """Pins of 3 and 6 blocks; a turn that needs one block more than is free takes the larger."""
    core, log = core_of(Policies(retention=Keep(yields=False)))
    core.submit(request(0, 50, 2))  # 3 full blocks pinned
    core.submit(request(1, 100, 2))  # 6 full blocks pinned
    now = finish(core, 0)
    assert core.view.pinned_blocks == 9
    core.submit(request(2, 170, 20))  # 11 of 11 free blocks, then a 12th
    finish(core, now)
    assert [row[:2] for row in told(log, "unpinned")] == [(1, 0)]
    assert told(log, "unpinned")[0][2][1] == Unpin.PRESSURE
    assert core.stats.preemptions == 0


def test_a_pin_that_does_not_yield_blocks_a_waiting_turn_until_nothing_runs():
    """A turn waits while another runs; when nothing runs it takes the pin: no deadlock."""
    core, log = core_of(Policies(retention=Keep(yields=False)))
    core.submit(request(0, 200, 2))  # 12 full blocks pinned
    now = finish(core, 0)
    core.submit(request(1, 16, 5))
    core.submit(request(2, 150, 2))  # 10 blocks; 6 are left
    start = now
    finish(core, now)
    scheduled = {(m.session): m.at_ps for m in log.moments if m.what == "scheduled first"}
    assert scheduled[1] == start
    assert scheduled[2] == start + 5 * MS  # the step after the 5 tokens of session 1
    assert told(log, "unpinned")[0][:2] == (0, 0)


def test_a_sessions_own_useless_pin_cannot_block_it():
    """After a compaction the pinned blocks are no hit: given up when nothing else helps."""
    core, log = core_of(Policies(retention=Keep()))
    core.submit(request(0, 200, 2))
    now = finish(core, 0)
    core.submit(request(0, 300, 2, turn=1, reused=0))
    finish(core, now)
    assert told(log, "unpinned")[0][2][1] == Unpin.PRESSURE
    assert told(log, "scheduled first")[1][2] == (0, 300)


def test_pins_stay_within_their_share():
    """A share of 0.2 is 4 of 20 blocks: a pin of 3 fits, a second one does not."""
    core, log = core_of(Policies(retention=Keep(share=0.2)))
    core.submit(request(0, 50, 2))
    core.submit(request(1, 50, 2))
    finish(core, 0)
    assert [row[:2] for row in told(log, "pinned")] == [(0, 0)]


def test_a_last_turn_and_an_ended_session_hold_nothing():
    """No pin outlives its session."""
    core, log = core_of(Policies(retention=Keep()))
    core.submit(request(0, 50, 2, last=True))
    core.submit(request(1, 50, 2))
    finish(core, 0)
    core.session_ended(0)
    core.session_ended(1)
    assert told(log, "unpinned") == [(1, 0, (3, int(Unpin.END), 0))]
    core.check_integrity()
    assert core.view.free_blocks == 20


def test_a_policy_that_breaks_its_protocol_is_named():
    """A quantum of 0 tokens and giving up what is not kept are PolicyErrors."""

    class Zero(EngineOrder):
        def prefill_quantum(self, turn, view, now_s):
            return 0

    core, _ = core_of(Policies(scheduling=Zero()))
    core.submit(request(0, 50, 2))
    with pytest.raises(PolicyError, match="prefill_quantum"):
        core.advance(0, MS)

    class Stranger(Keep):
        review_s = 0.0

        def review(self, retained, view, now_s):
            return [SimpleNamespace(session=retained[0].session + 1)]

    core, _ = core_of(Policies(retention=Stranger()))
    core.submit(request(0, 50, 2))
    now = finish(core, 0)
    core.submit(request(1, 50, 2))
    with pytest.raises(PolicyError, match="review"):
        core.advance(now, now + MS)


@pytest.mark.parametrize("seed", range(15))
def test_no_block_is_lost_under_retention(seed):
    """After any random cell with pins every block is free or pinned, and nothing is stuck."""
    from marsbench.engine.vllm.core import VllmCore

    case = make_case(300 + seed)
    made = []

    def make(listener):
        policies = Policies(retention=WildRetention(seed))
        made.append(VllmCore(case.config, COST, policies, listener))
        return made[0]

    run(make, case.sessions)
    core = made[0]
    assert core.view.free_blocks + core.view.pinned_blocks == case.config.num_blocks
    for session in range(len(case.sessions)):
        core.session_ended(session)
    assert core.view.free_blocks == case.config.num_blocks
    core.check_integrity()


def test_flags_that_vllm_refuses_are_named():
    """vLLM's own checks come back as one line."""
    with pytest.raises(EngineError, match=r"max_num_batched_tokens \(8\) must be"):
        core_of(config=dataclasses.replace(CONFIG, max_num_batched_tokens=8))


def test_an_unsupported_or_missing_vllm_is_named(monkeypatch):
    """The error names the range and what is installed, or how to install it."""
    from marsbench.engine.vllm import runtime

    monkeypatch.setattr(runtime, "installed_version", lambda: "0.31.2")
    with pytest.raises(EngineError, match=r">=0\.32,<0\.33, installed is 0\.31\.2"):
        core_of()
    monkeypatch.setattr(runtime, "installed_version", lambda: None)
    with pytest.raises(EngineError, match="not installed"):
        core_of()


class Skipping(EngineOrder):
    """Looks at every waiting turn, in order of submission."""

    def skip_blocked(self):
        return True


def test_turns_that_do_not_fit_are_asked_again_only_after_a_change(monkeypatch):
    """Turn 0 holds 10 of 20 blocks and grows to 13 in 49 steps; turns 1 and 2 need 16 each. They are
    asked while turn 0 computes its prompt (160 tokens at 64 a step: 3 steps), once more when that
    is over, and then only when turn 0 has ended: turn 1 fits, turn 2 does not."""
    core, log = core_of(Policies(scheduling=Skipping()))
    asked = []
    scheduler = core._scheduler
    stock = scheduler._handle_blocked_waiting_request

    def ask(request):
        asked.append(int(request.session_id))
        return stock(request)

    monkeypatch.setattr(scheduler, "_handle_blocked_waiting_request", ask)
    for session, prompt, output in ((0, 160, 47), (1, 250, 2), (2, 250, 2)):
        core.submit(request(session, prompt, output))
    now = core.advance(0, 1 << 62)
    assert now == 49 * MS
    assert asked.count(1) == asked.count(2) <= 4
    assert len(asked) < 49
    finish(core, now)
    started = [(m.session, m.at_ps // MS) for m in log.moments if m.what == "scheduled first"]
    assert started == [(0, 0), (1, 49), (2, 54)]  # 250 tokens: 4 steps, and one more token

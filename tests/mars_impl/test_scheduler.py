"""The coordinator: one order for waiting, running, chunking and preempting."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mars_impl.scheduler import Mars

LEVELS = {"level_2": 8192, "level_3": 32_768}
QUANTA = {"quantum_2": 4096, "quantum_3": 2048}


@pytest.fixture
def mars(build):
    return Mars(build.context(params={**LEVELS, **QUANTA}))


@pytest.fixture
def admitted(build, mars):
    """Sessions 0 to 4 are admitted in this order."""
    story = build.story(mars.on_event)
    for session in range(5):
        story.arrive(session, float(session)).submit(session, float(session))
    return story


def order(mars, view, turns, now_s=0.0):
    return [t.session for t in sorted(turns, key=lambda t: mars.waiting_key(t, view, now_s))]


def test_levels_look_at_uncached_tokens(build, mars, admitted):
    """A warm continuation of 60k tokens with 59k cached is level 0 and passes 3000 cold tokens."""
    warm = build.turn(session=3, turn_index=4, prompt_tokens=60_000)
    cold = build.turn(session=1, turn_index=4, prompt_tokens=3000)
    assert order(mars, build.engine(cached={3: 59_000}), [cold, warm]) == [3, 1]
    assert order(mars, build.engine(), [cold, warm]) == [1, 3], "without the hit it is level 3"


def test_a_level_begins_beyond_its_bound(mars):
    """2048 tokens are level 0, 2049 level 1; beyond 32768 it is 3."""
    bounds = (0, 2048, 2049, 8192, 8193, 32_768, 32_769)
    assert [mars.level(tokens) for tokens in bounds] == [0, 0, 1, 1, 2, 2, 3]


def test_ageing_lifts_a_waiting_turn_a_level_every_30_s(build, mars, admitted):
    """A cold 60k prompt (level 3) reaches level 0 after 90 s and then goes by rank."""
    old = build.turn(session=0, turn_index=1, prompt_tokens=60_000, ready_s=0.0)
    fresh = build.turn(session=1, turn_index=1, prompt_tokens=100, ready_s=89.0)
    assert order(mars, build.engine(), [old, fresh], 89.9) == [1, 0]
    assert order(mars, build.engine(), [old, fresh], 90.0) == [0, 1]


def test_continuations_go_before_first_turns_of_the_same_level(build, mars, admitted):
    """Session 0 has the better rank but only begins."""
    begins = build.turn(session=0, turn_index=0, prompt_tokens=500)
    goes_on = build.turn(session=4, turn_index=7, prompt_tokens=500)
    assert order(mars, build.engine(), [begins, goes_on]) == [4, 0]


def test_within_a_level_the_session_admitted_first_goes_first(build, mars, admitted):
    """Rank, not the order of submission of the turn; unknown sessions come last."""
    turns = [build.turn(session=n, turn_index=1, prompt_tokens=500, sequence=-n) for n in (4, 2, 9)]
    assert order(mars, build.engine(), turns) == [2, 4, 9]


def test_running_decodes_go_first_then_the_shortest_prefill(build, mars, admitted):
    """Left 0 / 1000 / 50,000 tokens; two decodes by rank."""
    turns = [
        build.turn(session=0, prompt_tokens=60_000, computed_tokens=10_000),
        build.turn(session=1, prompt_tokens=60_000, computed_tokens=59_000),
        build.turn(session=3, prompt_tokens=100, computed_tokens=120),
        build.turn(session=2, prompt_tokens=100, computed_tokens=120),
    ]
    ordered = sorted(turns, key=lambda t: mars.running_key(t, build.engine(), 0.0))
    assert [turn.session for turn in ordered] == [2, 3, 1, 0]
    aged = sorted(turns[:2], key=lambda t: mars.running_key(t, build.engine(), 90.0))
    assert [turn.session for turn in aged] == [0, 1], "after 90 s both are level 0: rank decides"


def test_quanta_shrink_with_what_is_left_while_others_are_there(build, mars):
    """Left 1000 or 5000 tokens: 8192; 20,000: 4096; 50,000: 2048; a prefix hit counts."""
    others = build.engine(running=(build.turn(), build.turn()), cached={7: 59_000})
    for left, quantum in ((1000, 8192), (5000, 8192), (20_000, 4096), (50_000, 2048)):
        turn = build.turn(prompt_tokens=60_000, computed_tokens=60_000 - left)
        assert mars.prefill_quantum(turn, others, 0.0) == quantum
    assert mars.prefill_quantum(build.turn(session=7, prompt_tokens=60_000), others, 0.0) == 8192


def test_alone_in_the_engine_a_prefill_is_not_cut(build, mars):
    """Nobody is delayed by a large chunk when nobody is there."""
    alone = build.engine(running=(build.turn(),))
    assert mars.prefill_quantum(build.turn(prompt_tokens=60_000), alone, 0.0) is None


def test_one_threshold_replaces_the_quanta(build):
    """The ablation cuts every prefill to the quantum of the worst level."""
    mars = Mars(build.context(params={**QUANTA, "quanta": 0}))
    others = build.engine(running=(build.turn(), build.turn()))
    for prompt in (100, 60_000):
        assert mars.prefill_quantum(build.turn(prompt_tokens=prompt), others, 0.0) == 2048


def test_prefills_are_preempted_before_decodes_and_low_ranks_before_high(build, mars, admitted):
    """Ranks 1 and 3 prefill, 0 and 4 decode: 3, 1, 4, 0; of one root the one with most blocks."""
    admitted.arrive(5, 5.0, parent=3).submit(5, 5.0)
    turns = [
        build.turn(session=0, computed_tokens=1100),
        build.turn(session=1, computed_tokens=10, num_blocks=900),
        build.turn(session=3, computed_tokens=10, num_blocks=1),
        build.turn(session=4, computed_tokens=1100),
        build.turn(session=5, computed_tokens=10, num_blocks=2),
    ]
    ordered = sorted(turns, key=lambda t: mars.victim_key(t, build.engine(), 0.0), reverse=True)
    assert [turn.session for turn in ordered] == [5, 3, 1, 4, 0]


def test_chunks_shrink_and_blocked_turns_let_others_pass(mars):
    """A prefill without memory first gets smaller; one that cannot start holds nobody up."""
    assert mars.shrink_chunks()
    assert mars.skip_blocked()
    mars.on_scheduled(None, 10, None, 0.0)


def test_without_the_coordinator_the_engines_own_order_holds(build):
    """Order of submission with preempted turns at the front; no quantum, shrinking or skipping."""
    mars = Mars(build.context(params={"coordinator": 0}))
    view = build.engine(running=(build.turn(), build.turn()))
    turns = [build.turn(session=0, sequence=2), build.turn(session=1, sequence=1, turn_index=3),
             build.turn(session=2, sequence=3, num_preemptions=1)]  # fmt: skip
    assert order(mars, view, turns) == [2, 1, 0]
    assert mars.running_key(turns[0], view, 0.0) == mars.running_key(turns[1], view, 0.0)
    assert mars.victim_key(turns[0], view, 0.0) == mars.victim_key(turns[1], view, 0.0)
    assert mars.prefill_quantum(build.turn(prompt_tokens=60_000), view, 0.0) is None
    assert not mars.shrink_chunks()
    assert not mars.skip_blocked()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=st.integers(1, 300_000),
    cached=st.floats(0, 1),
    waited_s=st.floats(0, 1e5),
)
def test_waiting_longer_never_worsens_a_place_in_the_queue(build, prompt, cached, waited_s):
    """Ageing is monotone, and nobody stays behind level 0 for more than three ageing steps."""
    mars = Mars(build.context())
    view = build.engine(cached={0: int(prompt * cached)})
    turn = build.turn(prompt_tokens=prompt)
    assert mars.waiting_key(turn, view, waited_s) <= mars.waiting_key(turn, view, waited_s / 2)
    assert mars.waiting_key(turn, view, 90.0)[0] == 0.0


def test_inside_a_server_places_follow_from_what_the_gate_let_in(build):
    """Nobody asks this Mars for admission: submitted sessions have places, and as they outgrow the
    cache (2 * 9800 of 16,000 tokens) the younger loses its place and its pin goes first.
    """
    mars = Mars(build.context(params={"lend": 0}))
    story = build.story(mars.on_event)
    for session in (0, 1):
        story.arrive(session, 0.0, 4000).submit(session, 0.0).start(session, 0.0)
    pins = [build.pin(session=n, num_blocks=10) for n in (0, 1)]
    mars.review(pins, build.engine(), 1.0)
    assert mars.rank(0) < mars.rank(1) < 1e6
    for session in (0, 1):
        story.end(session, 1.0).ready(session, 2.0, 9000, turn=1)
    mars.state.growth.mean = 800.0
    mars.review(pins, build.engine(), 2.0)
    assert mars.rank(0) < 1e6 < mars.rank(1)


def test_with_the_gate_here_a_submission_gives_no_place(build):
    """A turn let in beside the residents stays a guest, lowest in rank."""
    mars = Mars(build.context())
    mars.admit([], build.system(), 0.0)
    build.story(mars.on_event).arrive(0, 0.0).submit(0, 0.0)
    assert mars.rank(0) > 1e6

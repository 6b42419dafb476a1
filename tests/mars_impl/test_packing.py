"""Packing: who has a place in memory, who enters, and who may run beside them."""

from __future__ import annotations

from mars_gate import ask, mars_of

# --- residency --------------------------------------------------------------------------------


def resident_case(build, sizes, **params):
    """Sessions of these private sizes, admitted in this order, each with its next turn pending."""
    mars, story = mars_of(build, **params)
    for session, tokens in enumerate(sizes):
        story.arrive(session, 0.0, tokens).submit(session, 0.0).start(session, 0.0)
    for session, tokens in enumerate(sizes):
        story.end(session, 1.0).ready(session, 2.0, tokens, turn=1)
        mars.state.seat(mars.state.sessions[session])
    mars.state.growth.mean = 800.0
    return mars, [(n, 0.0, tokens, 1) for n, tokens in reversed(list(enumerate(sizes)))]


def test_sessions_are_resident_by_rank_while_their_working_sets_fit(build):
    """16,000 tokens; needs 6800 + 6800 = 13,600, and a third of 6800 would make 20,400: the last
    admitted is suspended at the gate. The others enter in order of rank.
    """
    mars, pending = resident_case(build, (6000, 6000, 6000))
    assert ask(mars, build, pending, 2.0) == [0, 1]


def test_a_smaller_session_of_lower_rank_may_fill_the_gap(build):
    """6800 + 6800 + 1800 = 15,400 fits although the session before it did not."""
    mars, pending = resident_case(build, (6000, 6000, 6000, 1000))
    assert ask(mars, build, pending, 2.0) == [0, 1, 3]


def test_the_highest_rank_is_resident_however_large(build):
    """15,900 + 800 tokens exceed the cache; the session is served all the same, alone."""
    mars, pending = resident_case(build, (15_900, 1000))
    assert ask(mars, build, pending, 2.0) == [0]


def test_suspension_takes_the_youngest_as_the_others_grow(build):
    """Two sessions of 6800 fit; when the first has grown by 4000 tokens the second waits."""
    mars, pending = resident_case(build, (6000, 6000))
    assert ask(mars, build, pending, 2.0) == [0, 1]
    build.story(mars.on_event).ready(0, 3.0, 10_000, turn=2)
    mars.state.growth.mean = 800.0
    assert ask(mars, build, pending, 3.0) == [0]


def test_a_small_newcomer_passes_a_suspended_session_that_does_not_fit(build):
    """13,600 of 16,000 tokens are taken: session 2 needs 6800, the newcomer 10 + 800."""
    mars, pending = resident_case(build, (6000, 6000, 6000))
    build.story(mars.on_event).arrive(9, 2.0, 10)
    assert ask(mars, build, [*pending, (9, 2.0, 10, 0)], 2.0) == [0, 1, 9]


def test_a_suspended_session_near_its_end_comes_before_a_newcomer(build):
    """Sessions of the class have 10 turns in 100 s. With 9 done 10 s are left; a newcomer has 100 s
    before it. Room for one: 6800 of 9200 tokens.
    """
    mars, story = mars_of(build)
    for _ in range(5):
        mars.state.classes.observe(6000, turns=10, private=0, active_s=100.0)
    for session in (0, 1):
        story.arrive(session, 0.0, 6000).submit(session, 0.0).start(session, 0.0)
        story.end(session, 1.0).ready(session, 2.0, 6000, turn=1)
    story.arrive(9, 2.0, 6000)
    mars.state.seat(mars.state.sessions[0])
    mars.state.sessions[1].turns = 9
    mars.state.growth.mean = 800.0
    pending = [(9, 2.0, 6000, 0), (0, 0.0, 6000, 1), (1, 0.0, 6000, 1)]
    assert ask(mars, build, pending, 2.0) == [0, 1]


def test_a_suspended_session_needs_room_to_grow_before_it_is_back(build):
    """Beside 6800 tokens 3 turns ahead need 6000 + 2400 = 8400 of the 9200 left, 5 turns 10,000."""
    for entry_turns, entered in ((3, [0, 1]), (5, [0])):
        mars, pending = resident_case(build, (6000, 6000), entry_turns=entry_turns)
        mars.state.unseat(mars.state.sessions[1])
        assert ask(mars, build, pending, 2.0) == entered


def test_shared_prefixes_count_once(build):
    """Three sessions of 6000 tokens share 4000: 4000 + 3 * (2000 + 800) = 12,400 fits."""
    mars, story = mars_of(build)
    for session in range(3):
        story.arrive(session, 0.0, 6000).submit(session, 0.0)
        story.start(session, 0.0, cached=4000).end(session, 1.0)
        story.ready(session, 2.0, 6000, turn=1)
        mars.state.seat(mars.state.sessions[session])
    mars.state.growth.mean = 800.0
    pending = [(n, 0.0, 6000, 1) for n in range(3)]
    assert ask(mars, build, pending, 2.0) == [0, 1, 2]


def test_without_the_kv_signal_everybody_is_resident(build):
    """The ablation suspends nobody and admits whatever comes."""
    mars, pending = resident_case(build, (6000,) * 5, kv_signal=0)
    build.story(mars.on_event).arrive(9, 2.0, 9000)
    assert ask(mars, build, [*pending, (9, 2.0, 9000, 0)], 2.0) == [0, 1, 2, 3, 4, 9]


def test_sub_agents_are_resident_with_their_root(build):
    """Parent 9000 and child 9000 tokens exceed the cache, but the parent cannot go on without the
    child: suspending it would stop both for ever.
    """
    mars, story = mars_of(build)
    story.arrive(0, 0.0, 9000).submit(0, 0.0).end(0, 1.0)
    mars.state.seat(mars.state.sessions[0])
    story.arrive(1, 1.0, 9000, parent=0)
    assert ask(mars, build, [(1, 1.0, 9000, 0)], 1.0) == [1]


def test_a_sub_agent_brings_its_suspended_root_back(build):
    """Root 4000 and child 3000 tokens need 4800 + 3800: they enter beside 6800, not beside 9800."""
    for other, entered in ((6000, [1]), (9000, [])):
        mars, story = mars_of(build)
        story.arrive(5, 0.0, other).submit(5, 0.0).start(5, 0.0)
        story.arrive(0, 0.0, 4000).submit(0, 0.0).end(0, 1.0)
        mars.state.seat(mars.state.sessions[5])
        story.arrive(1, 1.0, 3000, parent=0)
        mars.state.growth.mean = 800.0
        assert ask(mars, build, [(1, 1.0, 3000, 0)], 1.0) == entered
        assert mars.state.sessions[0].resident == bool(entered)


def test_turns_without_a_place_count_until_they_end(build):
    """A suspended session of 9000 tokens is still in the engine: 6800 more do not fit beside it and
    800 + 1000 do.
    """
    for tokens, entered in ((6400, []), (1000, [9])):
        mars, story = mars_of(build)
        story.arrive(0, 0.0, 9000).submit(0, 0.0).start(0, 0.0)
        story.arrive(1, 0.0, 10).submit(1, 0.0)
        mars.state.seat(mars.state.sessions[1])
        story.arrive(9, 1.0, tokens)
        assert ask(mars, build, [(9, 1.0, tokens, 0)], 1.0, num_running=2) == entered


# --- newcomers --------------------------------------------------------------------------------


def test_newcomers_are_packed_by_projected_growth(build):
    """With 10 turns of 800 tokens ahead, 1000 tokens need 9000: the first fits, two do not."""
    mars, story = mars_of(build, entry_turns=10)
    story.arrive(0, 0.0, 1000).arrive(1, 0.0, 1000)
    assert ask(mars, build, [(0, 0.0, 1000, 0), (1, 0.0, 1000, 0)], 0.0) == [0]


def test_growth_ends_with_the_session(build):
    """The class is known to have 3 turns: 10 turns ahead count as 3, 1000 + 3*800 = 3400."""
    mars, story = mars_of(build, entry_turns=10)
    for _ in range(5):
        mars.state.classes.observe(1000, turns=3, private=0, active_s=10.0)
    for session in range(6):
        story.arrive(session, 0.0, 1000)
    chosen = ask(mars, build, [(n, 0.0, 1000, 0) for n in range(6)], 0.0)
    assert chosen == [0, 1, 2, 3], "4 * 3400 = 13,600, a fifth would make 17,000"


def test_the_class_expected_to_be_shortest_enters_first(build):
    """64k-token tasks took 10 s, 1k-token tasks 500 s: the long prompt is the short session."""
    mars, story = mars_of(build, kv_signal=0)
    for _ in range(20):
        mars.state.classes.observe(64_000, turns=3, private=0, active_s=10.0)
        mars.state.classes.observe(1000, turns=3, private=0, active_s=500.0)
    story.arrive(0, 0.0, 1000).arrive(1, 1.0, 64_000)
    pending = [(0, 0.0, 1000, 0), (1, 1.0, 64_000, 0)]
    assert ask(mars, build, pending, 2.0) == [1, 0]


def late_case(build, **params):
    """All sessions take 100 s alone and 200 s under load. Session 1 arrived at 0 s and has had 1 of its 10
    turns, session 2 is new.
    """
    mars, story = mars_of(build, kv_signal=0, **params)
    for _ in range(10):
        mars.state.classes.observe(1000, turns=10, private=0, active_s=200.0, alone_s=100.0)
    story.arrive(1, 0.0).submit(1, 0.0).end(1, 10.0).ready(1, 20.0, 1000, turn=1)
    mars.state.sessions[1].alone_s = 10.0
    return mars, story


def test_who_can_no_longer_be_in_time_enters_last(build):
    """Session 1 has 90 s alone before it and 180 s under load, and takes 100 s alone: within three times
    that it ends if it goes on before 120 s. After that the new session passes it, though the older
    one has less before it; without the rule it does not.
    """
    for now_s, slo, order in ((119.0, 3, [1, 2]), (121.0, 3, [2, 1]), (121.0, 0, [1, 2])):
        mars, story = late_case(build, slo=slo)
        story.arrive(2, now_s)
        assert ask(mars, build, [(2, now_s, 1000, 0), (1, 0.0, 1000, 1)], now_s) == order


def test_nobody_is_late_before_the_first_session_has_ended(build):
    """What a session takes alone is not known yet: the shortest prompt goes first."""
    mars, story = mars_of(build, kv_signal=0)
    story.arrive(0, 0.0, 100).arrive(1, 500.0, 5000)
    assert ask(mars, build, [(1, 500.0, 5000, 0), (0, 0.0, 100, 0)], 599.0) == [0, 1]


def test_a_late_session_that_has_waited_too_long_goes_first_all_the_same(build):
    """The starvation bound is above the objective: after 600 s at the gate session 1 enters first."""
    for now_s, order in ((610.0, [2, 1]), (621.0, [1, 2])):
        mars, story = late_case(build)
        story.arrive(2, now_s)
        assert ask(mars, build, [(2, now_s, 1000, 0), (1, 0.0, 1000, 1)], now_s) == order


def test_nobody_starves_behind_shorter_sessions(build):
    """After 600 s (and three times its own expected time) a session goes by arrival, and until it
    fits nobody passes it.
    """
    mars, story = mars_of(build, entry_turns=0)
    for _ in range(5):
        mars.state.classes.observe(9000, turns=3, private=0, active_s=100.0)
        mars.state.classes.observe(100, turns=3, private=0, active_s=1.0)
    story.arrive(0, 0.0, 12_000).submit(0, 0.0)
    story.arrive(1, 0.0, 9000).arrive(2, 1.0, 100)
    mars.state.seat(mars.state.sessions[0])
    pending = [(2, 590.0, 100, 0), (1, 0.0, 9000, 0)]
    assert ask(mars, build, pending, 601.0) == []
    assert ask(mars, build, pending, 599.0) == [2]


def test_patience_follows_how_long_sessions_of_the_class_take(build):
    """Sessions of 9000 tokens take 500 s: one has waited too long after three times that, not after
    600 s. Until then a shorter one passes it.
    """
    mars, story = mars_of(build, entry_turns=0)
    for _ in range(100):
        mars.state.classes.observe(9000, turns=3, private=0, active_s=500.0)
    story.arrive(0, 0.0, 12_000).submit(0, 0.0)
    story.arrive(1, 0.0, 9000).arrive(2, 1.0, 100)
    mars.state.seat(mars.state.sessions[0])
    pending = [(2, 1400.0, 100, 0), (1, 0.0, 9000, 0)]
    for _ in range(100):
        mars.state.classes.observe(100, turns=3, private=0, active_s=500.0)
    assert ask(mars, build, pending, 1510.0) == []
    assert ask(mars, build, pending, 1490.0) == [2]


def test_before_any_session_has_ended_the_starvation_bound_is_in_seconds(build):
    """A 20k-token prompt is not expected to take 20,000 s: it goes first after half an hour."""
    mars, story = mars_of(build, kv_signal=0)
    story.arrive(0, 0.0, 20_000).arrive(1, 1790.0, 100)
    pending = [(1, 1790.0, 100, 0), (0, 0.0, 20_000, 0)]
    assert ask(mars, build, pending, 1800.0) == [0, 1]


def test_longest_first_under_tool_pressure_turns_the_order_around(build):
    """The preview's flip, as an ablation; without tool pressure the order stays."""
    pending = [(0, 0.0, 100, 0), (1, 0.0, 5000, 0)]
    for running, order in ((0, [0, 1]), (9, [1, 0])):
        mars, story = mars_of(build, kv_signal=0, longest_first=1)
        story.arrive(0, 0.0, 100).arrive(1, 0.0, 5000)
        assert ask(mars, build, pending, 1.0, tool_cores=1, tools_running=running) == order


def test_a_static_window_replaces_the_adaptive_one(build):
    """Three places, one taken: two of four enter, whatever the tools do."""
    mars, story = mars_of(build, static_window=3, kv_signal=0)
    story.arrive(0, 0.0).submit(0, 0.0)
    for session in range(1, 5):
        story.arrive(session, 0.0)
    pending = [(n, 0.0, 1000, 0) for n in range(1, 5)]
    assert ask(mars, build, pending, 1.0, tool_cores=1, tools_running=99) == [1, 2]


def test_the_first_session_enters_however_large(build):
    """With nobody active a session that needs more than the cache enters, alone."""
    mars, story = mars_of(build)
    story.arrive(0, 0.0, 15_990).arrive(1, 0.0, 15_990)
    pending = [(0, 0.0, 15_990, 0), (1, 0.0, 15_990, 0)]
    assert ask(mars, build, pending, 0.0) == [0]


def test_without_the_control_plane_everything_enters(build):
    """The ablation returns what it is given."""
    mars, story = mars_of(build, control_plane=0)
    story.arrive(0, 0.0, 10**6).arrive(1, 0.0, 10**6)
    assert ask(mars, build, [(1, 0.0, 10**6, 0), (0, 0.0, 10**6, 0)], 0.0) == [1, 0]


def test_a_newcomer_is_expected_to_share_what_its_class_does(build):
    """Prompts of 9,000 tokens, of which the last session found 8,000 computed: of 16,000, 8,000 are the
    shared ones and 1,000 its own, and the next needs 1,000 + 800, so three more fit beside it.
    """
    mars, story = mars_of(build)
    story.arrive(0, 0.0, 9000).submit(0, 0.0).start(0, 0.0, cached=8000).end(0, 1.0)
    mars.state.seat(mars.state.sessions[0])
    for session in range(1, 6):
        story.arrive(session, 1.0, 9000)
    assert ask(mars, build, [(n, 1.0, 9000, 0) for n in range(1, 6)], 1.0) == [1, 2, 3]


def test_agents_that_started_together_are_expected_to_share_what_one_of_them_found(build):
    """Both first turns found nothing. At its second turn of 12,000 tokens session 0 finds 11,500 of them,
    which its own 8,040 do not explain, so session 1 enters for its own second turn, too.
    """
    mars, story = mars_of(build)
    for session in (0, 1):
        story.arrive(session, 0.0, 8000).submit(session, 0.0).start(session, 0.0, cached=0)
        story.end(session, 1.0, output_tokens=40).ready(session, 2.0, 12_000, turn=1)
    mars.state.growth.mean = 800.0
    assert ask(mars, build, [(0, 0.0, 12_000, 1), (1, 0.0, 12_000, 1)], 2.0) == [0]
    story.submit(0, 2.0, turn=1).start(0, 2.0, turn=1, cached=11_500)
    mars.state.growth.mean = 800.0
    assert ask(mars, build, [(1, 0.0, 12_000, 1)], 3.0) == [1]

"""The preview's rules, one timeline each, with the numbers of its scripts."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mars_impl.preview import (
    ENGINE_WINDOW,
    QUANTA_TOKENS,
    PreviewController,
    PreviewParams,
    PreviewQueue,
    length_level,
)
from mars_impl.preview import build as build_preview
from marsbench.events import Kind
from marsbench.scheduler.base import NoRetention


@pytest.fixture
def queue():
    return PreviewQueue()


@pytest.fixture
def story(build, queue):
    return build.story(queue.on_event)


def controller(build, **params):
    """The controller alone, on blocks of 16 tokens, and the story it listens to."""
    found = PreviewController(PreviewParams.of(build.context(params=params)), 16)
    return found, build.story(found.on_event)


def names(chosen):
    return [session.session for session in chosen]


# --- inside the engine ------------------------------------------------------------------------


def test_levels_end_at_2048_8192_and_32768_tokens():
    """A prompt of 2048 tokens is level 0, one more token level 1, and so on to level 3."""
    lengths = (1, 2048, 2049, 8192, 8193, 32_768, 32_769, 10**6)
    assert [length_level(tokens) for tokens in lengths] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_waiting_queue_goes_by_full_prompt_length_then_order(build, queue, story):
    """A warm continuation of 60k tokens queues at level 3 although all but 100 tokens are cached."""
    for session in (0, 1, 2):
        story.submit(session, 0.0)
    warm = build.turn(session=0, sequence=0, turn_index=5, prompt_tokens=60_000)
    cold = build.turn(session=1, sequence=1, prompt_tokens=3000)
    later = build.turn(session=2, sequence=2, prompt_tokens=3000)
    view = build.engine(cached={0: 59_900})
    ordered = sorted((warm, later, cold), key=lambda t: queue.waiting_key(t, view, 0.0))
    assert [turn.session for turn in ordered] == [1, 2, 0]


def test_preempted_turns_return_to_the_front_at_level_0(build, queue, story):
    """The last preempted is first, before any level-0 prompt; after its end nothing is left of it."""
    for session in (0, 1, 2):
        story.submit(session, 0.0)
    story.tell(Kind.GPU_PREEMPT, 1.0, 0).tell(Kind.GPU_PREEMPT, 2.0, 1)
    turns = [
        build.turn(session=0, sequence=0, prompt_tokens=60_000, num_preemptions=1),
        build.turn(session=1, sequence=1, prompt_tokens=60_000, num_preemptions=1),
        build.turn(session=2, sequence=2, prompt_tokens=100),
    ]
    view = build.engine()
    ordered = sorted(turns, key=lambda t: queue.waiting_key(t, view, 2.0))
    assert [turn.session for turn in ordered] == [1, 0, 2]
    story.end(1, 3.0).submit(1, 4.0, turn=1)
    again = build.turn(session=1, sequence=3, prompt_tokens=60_000)
    assert queue.waiting_key(again, view, 4.0) == (0.0, 3.0, 3.0)


def test_only_30_turns_take_part_and_the_rest_queue_behind(build, queue, story):
    """The 31st turn waits behind any active one; when a turn ends it moves up, first come first."""
    for session in range(ENGINE_WINDOW + 2):
        story.submit(session, 0.0)
    view = build.engine()
    longest = build.turn(session=29, sequence=29, prompt_tokens=60_000)
    first_over = build.turn(session=30, sequence=30, prompt_tokens=10)
    second_over = build.turn(session=31, sequence=31, prompt_tokens=10)

    def key(turn):
        return queue.waiting_key(turn, view, 0.0)

    assert key(longest) < key(first_over) < key(second_over)
    story.end(0, 1.0)
    assert key(first_over) < key(longest) < key(second_over)
    story.done(31, 2.0).done(1, 2.0).submit(32, 2.0)
    assert key(build.turn(session=32, sequence=32))[0] == 0.0


def test_a_first_chunk_always_runs_at_level_0(build, queue):
    """A turn that never ran counts as 150 s old: 150/30 = 5 levels off, so 60k tokens start at 0."""
    turn = build.turn(prompt_tokens=60_000, ready_s=10.0, last_scheduled_s=10.0)
    assert (
        queue.prefill_quantum(turn, build.engine(num_blocks=9999, free_blocks=9999), 10.0) == 2048
    )


def test_afterwards_the_quantum_follows_what_is_left(build, queue):
    """Left 50,000 / 20,000 / 5000 / 1000 tokens: 256 / 512 / 1024 / 2048 per step."""
    view = build.engine()
    for computed, quantum in ((10_000, 256), (40_000, 512), (55_000, 1024), (59_000, 2048)):
        turn = build.turn(prompt_tokens=60_000, computed_tokens=computed)
        assert queue.prefill_quantum(turn, view, 0.0) == quantum


def test_quanta_can_be_scaled_for_tuning(build):
    """16 times: 4096 tokens at level 3."""
    policies = build_preview(build.context(params={"quantum_scale": 16.0}))
    turn = build.turn(prompt_tokens=60_000, computed_tokens=10_000)
    assert policies.scheduling.prefill_quantum(turn, build.engine(), 0.0) == 4096


def test_ageing_lifts_a_level_every_30_s(build, queue):
    """Level 3 left alone: 29.9 s still 3, 30 s 2, 95 s 0 (95/30 = 3.2), never below 0."""
    turn = build.turn(prompt_tokens=60_000, computed_tokens=2048, last_scheduled_s=100.0)
    view = build.engine()
    ages = (0.0, 29.9, 30.0, 61.0, 95.0, 500.0)
    assert [queue.level(turn, view, 100.0 + age_s) for age_s in ages] == [3, 3, 2, 1, 0, 0]


def test_a_full_quantum_with_work_left_sinks_a_level(build, queue):
    """2048 of 6000 tokens at level 0: then max(feedback 1, 3952 left -> 1) = 1; 1024 more: 2."""
    view = build.engine()
    first = build.turn(prompt_tokens=6000)
    queue.on_scheduled(first, queue.prefill_quantum(first, view, 0.0), 2048, 0.0)
    second = build.turn(prompt_tokens=6000, computed_tokens=2048)
    assert queue.level(second, view, 0.0) == 1
    queue.on_scheduled(second, queue.prefill_quantum(second, view, 0.0), 1024, 0.0)
    assert queue.level(build.turn(prompt_tokens=6000, computed_tokens=3072), view, 0.0) == 2


def test_a_cut_chunk_does_not_sink_and_feedback_ends_at_level_3(build, queue):
    """Less than the quantum (shrunk, or budget spent) leaves feedback alone; five full ones give 3."""
    view = build.engine()
    turn = build.turn(prompt_tokens=40_000, computed_tokens=39_000)
    queue.prefill_quantum(turn, view, 0.0)
    queue.on_scheduled(turn, 500, 2048, 0.0)
    assert queue.level(turn, view, 0.0) == 0
    for _ in range(5):
        queue.on_scheduled(turn, 900, queue.prefill_quantum(turn, view, 0.0), 0.0)
    assert queue.level(turn, view, 0.0) == 0, "900 of 2048 is no full quantum either"
    for _ in range(5):
        long = build.turn(prompt_tokens=40_000, computed_tokens=32_000)
        queue.on_scheduled(long, queue.prefill_quantum(long, view, 0.0), None, 0.0)
    assert queue.level(long, view, 0.0) == 3


def test_decoding_is_level_0_again(build, queue):
    """The chunk that completes the prompt clears the feedback."""
    view = build.engine()
    long = build.turn(prompt_tokens=40_000, computed_tokens=32_000)
    queue.on_scheduled(long, queue.prefill_quantum(long, view, 0.0), None, 0.0)
    assert queue.level(build.turn(prompt_tokens=40_000, computed_tokens=39_900), view, 0.0) == 1
    last = build.turn(prompt_tokens=40_000, computed_tokens=39_900)
    queue.on_scheduled(last, 100, 1024, 0.0)
    decoding = build.turn(prompt_tokens=40_000, computed_tokens=40_010, generated_tokens=11)
    assert queue.level(decoding, view, 0.0) == 0
    assert queue.level(build.turn(prompt_tokens=40_000, computed_tokens=39_900), view, 0.0) == 0


def test_running_turns_go_by_level_then_least_recently_scheduled(build, queue):
    """Decodes and almost finished prefills first; of equals the one that waited longest."""
    decode = build.turn(session=0, sequence=9, prompt_tokens=100, computed_tokens=105,
                        last_scheduled_s=4.0)  # fmt: skip
    recent = build.turn(session=1, sequence=1, prompt_tokens=9000, computed_tokens=1000,
                        last_scheduled_s=3.0)  # fmt: skip
    older = build.turn(session=2, sequence=2, prompt_tokens=9000, computed_tokens=1000,
                       last_scheduled_s=2.0)  # fmt: skip
    view = build.engine()
    ordered = sorted((recent, older, decode), key=lambda t: queue.running_key(t, view, 5.0))
    assert [turn.session for turn in ordered] == [0, 2, 1]
    assert queue.reorders_running


def test_the_victim_is_the_worst_level_then_the_largest_then_the_latest(build, queue):
    """Level 3 before level 1, 50 blocks before 40, later before earlier; a huge decode comes last."""
    view = build.engine()
    turns = [
        build.turn(session=0, prompt_tokens=900, computed_tokens=1000, num_blocks=4000),
        build.turn(session=1, prompt_tokens=9000, computed_tokens=5000, num_blocks=300),
        build.turn(session=2, prompt_tokens=60_000, computed_tokens=640, num_blocks=40),
        build.turn(session=3, prompt_tokens=60_000, computed_tokens=800, num_blocks=50),
        build.turn(
            session=4, prompt_tokens=60_000, computed_tokens=800, num_blocks=50, ready_s=1.0
        ),
    ]
    ordered = sorted(turns, key=lambda t: queue.victim_key(t, view, 500.0), reverse=True)
    assert [turn.session for turn in ordered] == [4, 3, 2, 1, 0]


def test_a_preempted_turn_is_judged_by_what_its_prefix_hit_leaves(build, queue, story):
    """60k tokens, 59k still cached: 1000 left is level 0; nothing cached is level 3, and feedback
    from before the preemption is forgotten.
    """
    view = build.engine(num_blocks=9999, free_blocks=9999, cached={0: 59_000})
    long = build.turn(prompt_tokens=60_000, computed_tokens=59_000)
    for _ in range(3):
        queue.on_scheduled(build.turn(prompt_tokens=10**6, computed_tokens=1), 2048, 2048, 0.0)
        queue.prefill_quantum(long, view, 0.0)
    story.tell(Kind.GPU_PREEMPT, 0.0, 0)
    back = build.turn(prompt_tokens=60_000, num_preemptions=1)
    assert queue.prefill_quantum(back, view, 0.0) == 2048
    assert queue.prefill_quantum(back, build.engine(free_blocks=9999), 0.0) == 256


def test_chunks_shrink_by_halves_before_anyone_is_preempted(build, queue):
    """Room for 20 blocks = 320 tokens: 2048 -> 1024 -> 512 -> 256; without room one block is left."""
    assert queue.shrink_chunks()
    assert not queue.skip_blocked()
    turn = build.turn(prompt_tokens=60_000)
    assert queue.prefill_quantum(turn, build.engine(free_blocks=20), 0.0) == 256
    assert queue.prefill_quantum(turn, build.engine(free_blocks=0), 0.0) == 16


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=st.integers(1, 200_000),
    share=st.floats(0, 1),
    age_s=st.floats(0, 400),
    preempted=st.booleans(),
)
def test_every_turn_has_a_quantum_of_the_table(build, prompt, share, age_s, preempted):
    """Whatever is left and however old, the level is one of four."""
    turn = build.turn(
        prompt_tokens=prompt,
        computed_tokens=int(prompt * share),
        num_preemptions=int(preempted),
    )
    view = build.engine(num_blocks=10**6, free_blocks=10**6)
    assert PreviewQueue().prefill_quantum(turn, view, age_s) in QUANTA_TOKENS


# --- in front of the engine -------------------------------------------------------------------


def test_the_cpu_flag_has_hysteresis_on_backlog_and_on_waiting(build):
    """8 cores: on at 32 calls (4 per core), still on at 9, off at 8 (1 per core)."""
    control, _ = controller(build)
    seen = []
    for step, calls in enumerate((31, 32, 9, 8, 9)):
        control.control(build.system(tool_cores=8, tools_running=calls), float(step))
        seen.append(control.cpu.on)
    assert seen == [False, True, True, False, False]


def test_waiting_for_slots_is_an_average_with_weight_a_fifth(build):
    """ToolWaits of 20 s and 10 s: 0.2*20 = 4.0, then 4.0 + 0.2*(10 - 4.0) = 5.2 >= 5: overloaded."""
    control, story = controller(build)
    story.enqueue(0, 0.0).start_tool(0, 20.0)
    assert control.queue_wait_s == pytest.approx(4.0)
    story.enqueue(0, 20.0).start_tool(0, 30.0)
    assert control.queue_wait_s == pytest.approx(5.2)
    control.control(build.system(tool_cores=8), 30.0)
    assert control.cpu.on
    story.start_tool(1, 31.0)
    assert control.queue_wait_s == pytest.approx(4.16), "a call never queued waited 0 s"


def test_the_kv_flag_goes_on_at_90_percent_and_off_at_85(build):
    """Referenced blocks of 1000: 899 off, 900 on, 851 on, 850 off."""
    control, _ = controller(build)
    seen = []
    for step, used in enumerate((899, 900, 851, 850)):
        control.control(build.system(free_blocks=1000 - used), float(step))
        seen.append(control.kv.on)
    assert seen == [False, True, True, False]


def test_caps_from_cores_and_from_memory(build):
    """8 cores: ceil(8 * (1+4)/2) = 20 sessions, 1 core: 3 -> the least window, 4; no limit on cores:
    30. Usage 0.85 gives 30, 0.90 gives 4, half way floor(4 + 26/2) = 17.
    """
    control, _ = controller(build)
    assert [control.cpu_cap(build.system(tool_cores=cores)) for cores in (8, 1, 0)] == [20, 4, 30]
    caps = [control.kv_cap(build.system(free_blocks=free)) for free in (600, 150, 125, 100, 0)]
    assert caps == [30, 30, 17, 4, 4]


def test_the_window_falls_to_0_7_and_grows_by_one(build):
    """30 under load 21, 14, 9, 6, 4, 4; then healthy 5, 6; in between it holds."""
    control, _ = controller(build)
    busy = build.system(tool_cores=20, tools_running=80)
    calm = build.system(tool_cores=20)
    between = build.system(tool_cores=20, tools_running=30)
    seen = []
    for step, view in enumerate([busy] * 6 + [calm] * 2 + [between]):
        control.control(view, float(step))
        seen.append(control.window)
    assert seen == [21, 14, 9, 6, 4, 4, 5, 6, 6]


def test_the_pace_of_arrivals_is_the_mean_gap_so_far(build):
    """Unknown before the second arrival; at 0, 4 and 6 s it is 3 s."""
    control, story = controller(build)
    story.arrive(0, 0.0)
    assert control.mean_gap_s() == float("inf")
    story.arrive(1, 4.0).arrive(2, 6.0)
    assert control.mean_gap_s() == pytest.approx(3.0)


def test_the_window_moves_at_most_every_0_2_s(build):
    """Three looks within 0.2 s are one step down: 21."""
    control, _ = controller(build)
    for at_s in (0.0, 0.1, 0.19):
        control.control(build.system(tool_cores=20, tools_running=80), at_s)
    assert control.window == 21


def test_memory_that_is_nearly_full_stops_growth(build):
    """87 % used is no pressure, but above the low mark: the window holds at the KV cap."""
    control, _ = controller(build)
    control.control(build.system(free_blocks=130), 0.0)
    assert control.window == 4 + int(26 * 0.03 / 0.05)


def test_low_pressure_is_first_come_first_served(build):
    """Nothing overloaded and everything fits: arrival order, long prompts included."""
    control, story = controller(build, long_tokens=2000)
    pending = [build.session(session=n, prompt_tokens=p) for n, p in enumerate((3000, 100, 2000))]
    for s in pending:
        story.arrive(s.session, 0.0, s.prompt_tokens)
    assert names(control.admit(pending, build.system(), 0.0)) == [0, 1, 2]
    assert control.mode == "low_pressure_fcfs"


def test_short_first_packs_what_fits_into_the_budget(build):
    """600 free blocks less ceil(1000*0.1) = 500: of 100, 300 and 450 blocks, shortest first, the
    first two fit (400), the third does not (850).
    """
    control, story = controller(build, pool=4, window_min=2)
    sizes = (7200, 1600, 4800)
    pending = [build.session(session=n, prompt_tokens=p) for n, p in enumerate(sizes)]
    active = (build.session(session=8), build.session(session=9))
    for s in (*pending, *active):
        story.arrive(s.session, 0.0, s.prompt_tokens)
    view = build.system(free_blocks=600, active=active)
    chosen = control.admit(pending, view, 0.0)
    assert control.mode == "short_first"
    assert names(chosen) == [1, 2]


def test_who_does_not_fit_lets_later_ones_pass(build):
    """Arrival order with 500 blocks to give: 600 blocks are skipped, 300 enter."""
    control, story = controller(build)
    pending = [build.session(session=n, prompt_tokens=p) for n, p in enumerate((9600, 4800))]
    for s in pending:
        story.arrive(s.session, 0.0, s.prompt_tokens)
    view = build.system(free_blocks=600, active=(build.session(session=9),))
    story.arrive(9, 0.0)
    assert names(control.admit(pending, view, 0.0)) == [1]


def test_cpu_overload_turns_the_order_around(build):
    """80 calls on 8 cores: the longest prefill first; the window falls to 21, capped by 20 cores'."""
    control, story = controller(build)
    pending = [build.session(session=n, prompt_tokens=p) for n, p in enumerate((100, 3000, 800))]
    active = tuple(build.session(session=9 + n) for n in range(18))
    for s in (*pending, *active):
        story.arrive(s.session, 0.0, s.prompt_tokens)
    view = build.system(tool_cores=8, tools_running=80, active=active)
    assert names(control.admit(pending, view, 0.0)) == [1, 2], "20 - 18 = 2 slots"
    assert control.mode == "cpu_overloaded_long_first"


def needle_case(build, **changes):
    """Two long sessions wait while one short session is in flight and the pool is nearly full."""
    control, story = controller(build, long_tokens=2000, pool=3)
    for session, prompt in ((0, 100), (1, 5000), (2, 3000), (3, 4000)):
        story.arrive(session, float(session), prompt)
    pending = [build.session(session=n, prompt_tokens=p)
               for n, p in ((1, 5000), (2, 3000), (3, 4000))]  # fmt: skip
    view = build.system(**{"active": (build.session(session=0),), **changes})
    return control, story, pending, view


def test_needles_wait_until_no_short_session_was_queued_for_a_while(build):
    """Arrivals every 1 s: patience max(0.2, min(5, 1)) = 1 s. A short one is seen at 3.0 s; at 3.9 s
    no needle, at 4.1 s the two smallest, because at most two long ones may be in flight.
    """
    control, story, pending, view = needle_case(build)
    story.arrive(4, 4.0, 1900)
    short = build.session(session=4, prompt_tokens=1900)
    full = build.system(active=tuple(build.session(session=0) for _ in range(3)))
    assert control.admit([*pending, short], full, 4.0) == []
    assert control.admit(pending, view, 4.9) == []
    assert control.mode == "short_first"
    assert names(control.admit(pending, view, 5.1)) == [2, 3]


def test_needles_are_two_at_most_and_none_under_kv_pressure(build):
    """One long in flight leaves one place; 90 % usage leaves none."""
    control, story, pending, _ = needle_case(build)
    story.arrive(5, 4.0, 5000)
    active = (build.session(session=0), build.session(session=5))
    assert names(control.admit(pending, build.system(active=active), 8.0)) == [2]
    control, _, pending, view = needle_case(build, free_blocks=100)
    assert control.admit(pending, view, 8.0) == []
    assert control.kv.on


def test_long_sessions_in_flight_take_places_for_needles(build):
    """Six places in the pool, at most two for long sessions; seven of them wait. With one short
    session in flight two may slip in, with a long one beside it one, with two long ones none.
    """
    control, story = controller(build, long_tokens=2000, pool=6)
    for session, prompt in enumerate((100, 5000, 5000, *range(3000, 3700, 100))):
        story.arrive(session, float(session), prompt)
    longs = [build.session(session=n, prompt_tokens=2700 + 100 * n) for n in range(3, 10)]
    for num_flying, chosen in ((1, [3, 4]), (2, [3]), (3, [])):
        flying = tuple(build.session(session=n) for n in range(num_flying))
        assert names(control.admit(longs, build.system(active=flying), 9.5)) == chosen
        assert control.mode == "short_first"


def test_the_tail_packs_long_sessions_in_order_of_arrival(build):
    """No arrival for ten mean gaps (1 s): 800 free blocks * 0.95 = 760 less 100 in flight = 660; of
    400, 500 and 250 blocks the first and the third fit, 650 together.
    """
    control, story = controller(build, long_tokens=1000)
    sizes = ((0, 1600), (1, 6400), (2, 8000), (3, 4000))
    for session, prompt in sizes:
        story.arrive(session, float(session), prompt)
    pending = [build.session(session=n, prompt_tokens=p) for n, p in sizes[1:]]
    view = build.system(free_blocks=800, active=(build.session(session=0),))
    control.admit(pending, view, 12.9)
    assert control.mode != "tail_kv_drain_fit"
    assert names(control.admit(pending, view, 13.1)) == [1, 3]
    assert control.mode == "tail_kv_drain_fit"


def test_the_tail_starts_softly_and_never_stops(build):
    """While a short one is in flight only one long enters; if nothing fits, the oldest does."""
    control, story = controller(build, long_tokens=1000)
    for session, prompt in ((0, 500), (1, 6400), (2, 4000)):
        story.arrive(session, float(session), prompt)
    pending = [build.session(session=n, prompt_tokens=p) for n, p in ((1, 6400), (2, 4000))]
    active = (build.session(session=0),)
    assert names(control.admit(pending, build.system(active=active), 99.0)) == [1]
    crowded = build.system(active=active, free_blocks=50)
    assert names(control.admit(pending, crowded, 99.0)) == [1]


def test_with_nothing_in_flight_the_shortest_enters(build):
    """A first prompt above the budget (1000 - 100 blocks) would wait for ever otherwise."""
    control, story = controller(build)
    story.arrive(0, 0.0, 15_900).arrive(1, 0.0, 15_500)
    pending = [build.session(session=0, prompt_tokens=15_900),
               build.session(session=1, prompt_tokens=15_500)]  # fmt: skip
    assert names(control.admit(pending, build.system(), 0.0)) == [1]


def test_sub_agents_need_no_place_and_continuations_are_never_held(build):
    """Only first turns of top-level sessions are gated, and children in flight are not counted."""
    control, story = controller(build, pool=2, window_min=1)
    assert not control.gates_continuations
    for session in (0, 1, 2):
        story.arrive(session, 0.0, parent=0 if session == 1 else -1)
    active = (build.session(session=0), build.session(session=1, is_child=True))
    chosen = control.admit([build.session(session=2)], build.system(active=active), 0.0)
    assert names(chosen) == [2]
    assert control.mean_gap_s() == 0.0, "the child is no arrival"


def test_tool_slots_are_the_cores_first_come_first_served(build):
    """One call per core; without a limit on cores there is none on calls."""
    control, _ = controller(build)
    assert control.slots(build.system(tool_cores=8), 0.0) == 8
    assert control.slots(build.system(), 0.0) is None
    assert control.next_call([build.call(), build.call(session=1)], build.system(), 0.0) == 0


def test_ended_sessions_are_forgotten(build):
    """Nothing grows with the number of sessions that have come and gone."""
    control, story = controller(build)
    story.arrive(0, 0.0).done(0, 1.0)
    assert not control._first_prompt


def test_the_preview_retains_nothing(build):
    """The release has no retention; order, admission and slots are its own."""
    policies = build_preview(build.context(params={"pool": 8.0}))
    assert isinstance(policies.retention, NoRetention)
    assert policies.admission is policies.tools
    assert policies.admission.params.pool == 8.0

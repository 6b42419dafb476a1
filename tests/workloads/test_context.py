"""Turns fitted to recorded prompt lengths."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from marsbench.core import SharedPrefix, plan_turns
from workloads.context import RecordedCall, build_session, group_prefix


def plans(calls, prefix=0):
    shared = SharedPrefix("p", prefix) if prefix else None
    session = build_session("s", calls, prefix=shared)
    return session, [tuple(plan) for plan in plan_turns(session)]


def test_growth_pays_for_the_output_first():
    """100 + 20 re-sent + 30 new = 150; the next prompt reuses 120."""
    session, found = plans([RecordedCall(100, 20), RecordedCall(150, 10)])
    assert [turn.new_input_tokens for turn in session.turns] == [100, 30]
    assert found == [(100, 0, 20), (150, 120, 10)]


def test_growth_below_the_output_is_a_partial_resend():
    """Growth of 5 for an output of 20: a quarter is re-sent, and its KV cannot be reused."""
    session, found = plans([RecordedCall(100, 20), RecordedCall(105, 10)])
    assert session.turns[0].resent_output == 0.25
    assert found[1] == (105, 100, 10)


def test_rewritten_output_is_never_verbatim():
    """A template that rewrites answers ends reuse at the previous prompt, whatever the growth."""
    session, found = plans(
        [RecordedCall(100, 20, rewritten=True), RecordedCall(150, 10, rewritten=True)]
    )
    assert session.turns[0].resent_output == 19 / 20
    assert found[1] == (150, 100, 10)


def test_a_shorter_prompt_keeps_what_is_recorded():
    """400 -> 90: 64 tokens were recorded as unchanged, 26 are new."""
    session, found = plans([RecordedCall(400, 20), RecordedCall(90, 10, unchanged_tokens=64)])
    assert session.turns[1].new_input_tokens == 26
    assert found[1] == (90, 64, 10)


def test_a_shorter_prompt_without_a_record_keeps_the_shared_prefix():
    """400 -> 90 with a shared prefix of 50: 40 tokens are new."""
    _, found = plans([RecordedCall(400, 20), RecordedCall(90, 10)], prefix=50)
    assert found == [(400, 50, 20), (90, 50, 10)]


def test_a_longer_prompt_may_change_in_the_middle():
    """100 -> 150 with 64 unchanged: new input is still 30, reuse is 64."""
    session, found = plans([RecordedCall(100, 20), RecordedCall(150, 10, unchanged_tokens=64)])
    assert session.turns[1].new_input_tokens == 30
    assert found[1] == (150, 64, 10)


def test_the_shared_prefix_is_cut_to_what_stays_in_place():
    """A session that keeps only 30 tokens of its prompt shares at most 30."""
    session, _ = plans(
        [RecordedCall(100, 20), RecordedCall(150, 10, unchanged_tokens=30)], prefix=50
    )
    assert session.shared_prefix == SharedPrefix("p", 30)


def test_compaction_keeps_the_shared_prefix_even_if_the_prompt_grows():
    """After a compaction nothing but the prefix is reused."""
    _, found = plans([RecordedCall(100, 20), RecordedCall(150, 10, compacted=True)], prefix=50)
    assert found[1] == (150, 50, 10)


def test_an_empty_answer_counts_as_one_token():
    """An engine cannot produce nothing; the token is not re-sent."""
    session, found = plans([RecordedCall(100, 0), RecordedCall(130, 10)])
    assert session.turns[0].output_tokens == 1
    assert session.turns[1].new_input_tokens == 30
    assert found[1][0] == 130


def test_one_session_shows_no_shared_prefix():
    """What is shared takes two sessions to see: the shortest first prompt less the margin."""
    assert group_prefix("g", [1000]) is None
    assert group_prefix("g", [1100, 1000]) == SharedPrefix("g", 872)
    assert group_prefix("g", [100, 90]) is None


CALLS = st.builds(
    RecordedCall,
    prompt_tokens=st.integers(1, 400),
    output_tokens=st.integers(0, 60),
    unchanged_tokens=st.none() | st.integers(0, 400),
    shrunk_to_tokens=st.none() | st.integers(0, 400),
    compacted=st.booleans(),
    resent_tokens=st.none() | st.integers(0, 80),
    rewritten=st.booleans(),
)


@given(st.lists(CALLS, min_size=1, max_size=8), st.integers(0, 300))
def test_plans_always_reproduce_recorded_prompts(calls, prefix):
    """Whatever was recorded, planned prompts have exactly those lengths, in whole tokens."""
    session, found = plans(calls, prefix)
    assert [prompt for prompt, _, _ in found] == [call.prompt_tokens for call in calls]
    assert all(turn.new_input_tokens >= 0 for turn in session.turns)
    for index, call in enumerate(calls[1:], start=1):
        if call.unchanged_tokens is not None and not call.compacted:
            assert min(found[index][1], calls[index - 1].prompt_tokens) <= max(
                call.unchanged_tokens, session.shared_prefix.tokens if session.shared_prefix else 0
            )

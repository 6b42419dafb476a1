"""ThunderAgent in Dynamo: the band between pausing and restoring, entry, and the lease."""

from __future__ import annotations

from baselines.thunderagent import ThunderAgent
from baselines.thunderagent_dynamo import RULES


def case(build, *contexts, pending=()):
    """A policy and telemetry of 10,000 tokens: sessions in their tools since 0 s, by context."""
    policy = ThunderAgent(build.context(num_blocks=10_000, block_size=1), RULES)
    active = [
        build.session(session=n, prompt_tokens=0, context_tokens=tokens, phase="tool")
        for n, tokens in enumerate(contexts)
    ]
    return policy, build.system(
        active=(*active, *pending), num_blocks=10_000, block_size=1, free_blocks=0
    )


def test_sessions_pause_beyond_95_percent_down_to_80(build):
    """3000 + 2900 + 2000 + 1200 and the margins are exactly 9500: nobody pauses. With 1 token more the
    two smallest do: 8201 are left without the first, 6101 without both.
    """
    policy, view = case(build, 3000, 2900, 2000, 1200)
    policy.admit([], view, 0.0)
    assert policy.paused == set()
    policy, view = case(build, 3001, 2900, 2000, 1200)
    policy.admit([], view, 0.0)
    assert policy.paused == {2, 3}


def test_paused_sessions_come_back_below_85_percent_and_new_ones_below_100(build):
    """With 5900 and a margin in use a paused session of 2400 is back (8500), one of 2401 is not; a new
    one of 3900 enters at once (10,000), one of 3901 does not.
    """
    for tokens, admitted in ((2400, [1]), (2401, [])):
        back = build.session(session=1, prompt_tokens=tokens, context_tokens=0, turn_index=1)
        policy, view = case(build, 5900, pending=(back,))
        policy.paused = {1}
        assert [s.session for s in policy.admit([back], view, 0.0)] == admitted
    for tokens, admitted in ((3900, [1]), (3901, [])):
        new = build.session(session=1, prompt_tokens=tokens, context_tokens=0)
        policy, view = case(build, 5900)
        assert [s.session for s in policy.admit([new], view, 0.0)] == admitted


def test_a_session_long_in_its_tools_gives_up_its_place_and_comes_back_as_a_new_one(build):
    """After 600 s the 9000 tokens no longer count, and a new session of 5000 enters; when the old one is
    back it does not fit beside that and queues.
    """
    new = build.session(session=1, prompt_tokens=5000, context_tokens=0, phase_since_s=590.0)
    policy, view = case(build, 9000)
    assert policy.admit([new], view, 595.0) == []
    assert [s.session for s in policy.admit([new], view, 600.0)] == [1]
    back = build.session(session=0, prompt_tokens=9000, phase_since_s=601.0, turn_index=1)
    other = build.session(session=1, prompt_tokens=5000, context_tokens=0, phase="engine")
    view = build.system(active=(back, other), num_blocks=10_000, block_size=1, free_blocks=0)
    assert policy.admit([back], view, 601.0) == []
    assert policy.queued == {0}

"""Token ids of real prompts are equal exactly where the content is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsbench.core import Session, SharedPrefix, Turn, plan_turns
from marsbench.engine.base import Request
from marsbench.engine.live.prompts import Prompts, Vocabulary
from marsbench.errors import EngineError


def requests(session: Session, index: int, prefix_id: int = 0) -> list[Request]:
    """A session's turns as a driver hands them to a core."""
    prefix = session.shared_prefix
    return [
        Request(
            session=index,
            turn_index=k,
            prompt_tokens=plan.prompt_tokens,
            reused_tokens=plan.reused_tokens,
            output_tokens=plan.output_tokens,
            prefix_id=prefix_id if prefix else -1,
            prefix_tokens=prefix.tokens if prefix else 0,
            session_arrival_ps=0,
            ready_ps=0,
            priority=0,
            is_last=False,
            tool_names=(),
        )
        for k, plan in enumerate(plan_turns(session))
    ]


def common(left: np.ndarray, right: np.ndarray) -> int:
    """Length of the common beginning."""
    size = min(len(left), len(right))
    differ = np.flatnonzero(left[:size] != right[:size])
    return int(differ[0]) if len(differ) else size


def test_a_shared_prefix_is_shared_and_the_rest_is_not():
    """Two sessions agree on their 100 prefix tokens and differ right behind (but for chance)."""
    sessions = [
        Session(name, (Turn(200, 5),), shared_prefix=SharedPrefix("p", 100)) for name in "ab"
    ]
    prompts = Prompts()
    one, two = (prompts.compose(requests(s, k)[0]) for k, s in enumerate(sessions))
    assert len(one) == len(two) == 300
    assert 100 <= common(one, two) < 103
    other = Prompts().compose(requests(sessions[0], 0, prefix_id=1)[0])
    assert common(one, other) < 3


def test_answers_take_the_place_of_the_recorded_output():
    """The next prompt begins with the last prompt and what the server really said; a short answer
    is filled up, so that lengths stay as planned."""
    session = Session("s", (Turn(50, 4), Turn(10, 4), Turn(10, 1)))
    first, second, third = requests(session, 0)
    prompts = Prompts()
    begin = prompts.compose(first).copy()
    prompts.answered(first, [7, 8, 9, 10])
    prompt = prompts.compose(second).copy()
    assert prompt.tolist()[:54] == [*begin.tolist(), 7, 8, 9, 10]
    prompts.answered(second, [1, 2])
    last = prompts.compose(third)
    assert len(last) == 50 + 4 + 10 + 4 + 10
    assert last.tolist()[:66] == [*prompt.tolist(), 1, 2]


def test_rewritten_output_ends_the_common_part():
    """Where the chat template rewrites the output, the next prompt agrees up to the last prompt."""
    session = Session("s", (Turn(50, 20, resent_output=0.5), Turn(10, 4)))
    first, second = requests(session, 0)
    prompts = Prompts()
    begin = prompts.compose(first).copy()
    prompts.answered(first, [5] * 20)
    assert 50 <= common(begin, prompts.compose(second)) < 53 or len(begin) == 50
    assert second.reused_tokens == 50


@given(order=st.permutations([(s, t) for s in range(3) for t in range(3)]))
def test_order_does_not_matter(order):
    """Whatever order turns of different sessions come in, each prompt is the same."""
    prefix = SharedPrefix("p", 30)
    sessions = [Session(str(k), (Turn(20 + k, 3),) * 3, shared_prefix=prefix) for k in range(3)]
    made: list[dict] = []
    for sequence in (sorted(order), sorted(order, key=lambda item: (item[1], order.index(item)))):
        prompts, found = Prompts(salt="x"), {}
        for session, turn in sequence:
            request = requests(sessions[session], session)[turn]
            found[session, turn] = prompts.compose(request).tolist()
            prompts.answered(request, [turn, session, 9])
        made.append(found)
    assert made[0] == made[1]


def test_salt_and_vocabulary():
    """Another salt gives other content; all ids lie in the vocabulary, and use all of it."""
    request = requests(Session("s", (Turn(5000, 1),), shared_prefix=SharedPrefix("p", 50)), 0)[0]
    one, two = (Prompts(Vocabulary(10, 20), salt=salt).compose(request) for salt in "ab")
    assert common(one, two) < 10
    assert set(one.tolist()) == set(range(10, 20))
    with pytest.raises(EngineError, match="at least two ids"):
        Prompts(Vocabulary(5, 6))


def test_reuse_of_what_was_never_sent_is_an_error():
    """A turn that reuses more than its session's context is a broken trace, named as such."""
    later = requests(Session("s", (Turn(50, 4), Turn(10, 4))), 3)[1]
    with pytest.raises(EngineError, match="session 3 turn 1: reuses 54 tokens"):
        Prompts().compose(later)

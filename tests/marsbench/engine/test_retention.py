"""The retention book: what is kept, until when, and who gives way, with an engine of one list."""

from __future__ import annotations

import math

import pytest
from policy_views import Engine, Turn

from marsbench.core import PS_PER_S
from marsbench.engine.retention import RetentionBook
from marsbench.errors import PolicyError
from marsbench.events import Unpin
from marsbench.scheduler.base import NoRetention, Retain


class Keep(NoRetention):
    """Keeps every turn for ``ttl_s`` and gives up the pin with the most context first."""

    def __init__(self, ttl_s=math.inf, *, share=1.0, review_s=math.inf, spares=False, yields=()):
        self.ttl_s = ttl_s
        self.max_share = share
        self.review_s = review_s
        self.spares = spares
        self.yields = yields
        """Sessions whose pins yield to waiting turns."""
        self.reviewed_s = []
        self.gives_up = ()

    def on_turn_end(self, turn, tool_names, is_last, view, now_s):
        return Retain(now_s + self.ttl_s)

    def review(self, retained, view, now_s):
        self.reviewed_s.append(now_s)
        return [Turn(session=session) for session in self.gives_up]

    def reclaim_key(self, retained, view, now_s):
        return (float(retained.context_tokens),)

    def yields_to(self, retained, turn, view, now_s):
        return retained.session in self.yields

    def spares_returned(self):
        return self.spares


class Shelf:
    """An engine of 100 blocks that holds a session's blocks by a name, and hears of pins."""

    def __init__(self, policy):
        self.held = []
        self.heard = []
        self.book = RetentionBook(policy, Engine(), self, 100, self.held.remove)

    def ends(self, session, at_s, *, blocks=10, tokens=1000, last=False):
        """A turn of a session ends; whether its blocks are kept."""
        turn = Turn(session=session, prompt_tokens=tokens)
        now_ps = int(at_s * PS_PER_S)
        until_ps = self.book.keep_until(turn, ("bash",), last, blocks, now_ps)
        if until_ps <= now_ps:
            return False
        self.held.append(f"blocks of {session}")
        self.book.pin(turn, self.held[-1], blocks, now_ps, until_ps)
        return True

    def review(self, at_s):
        return self.book.review(int(at_s * PS_PER_S))

    def reclaim(self, waiting=None):
        """The session that gives way, if one does."""
        before = {pin.session for pin in self.book.pins()}
        done = self.book.reclaim(PS_PER_S, None if waiting is None else Turn(session=waiting))
        gone = before - {pin.session for pin in self.book.pins()}
        assert done == bool(gone)
        return gone.pop() if gone else None

    def on_pin(self, session, turn_index, at_ps, blocks, until_ps):
        self.heard.append(("pin", session, blocks))

    def on_unpin(self, session, turn_index, at_ps, blocks, reason, held_ps):
        self.heard.append((Unpin(reason).name, session, blocks, held_ps // PS_PER_S))


def test_what_is_given_up_is_released_and_told_with_its_reason():
    """Each pin is released exactly once, and the log says why and after how long."""
    shelf = Shelf(Keep(ttl_s=30))
    for session in range(3):
        assert shelf.ends(session, 0.0)
    assert shelf.book.drop(0, 10 * PS_PER_S, Unpin.RETURN)
    assert not shelf.book.drop(0, 10 * PS_PER_S, Unpin.END)
    assert shelf.book.drop(1, 20 * PS_PER_S, Unpin.END)
    assert not shelf.review(29.9)
    assert shelf.review(30.0)
    assert shelf.held == []
    assert not shelf.book.active
    assert shelf.heard[3:] == [("RETURN", 0, 10, 10), ("END", 1, 10, 20), ("EXPIRE", 2, 10, 30)]


def test_a_dropped_pin_makes_room_in_the_share():
    """At most 40 of 100 blocks: 25 + 20 are too many, 25 + 15 are not; without the 25, 20 fit."""
    shelf = Shelf(Keep(share=0.4))
    assert shelf.ends(0, 0.0, blocks=25)
    assert not shelf.ends(1, 0.0, blocks=20)
    assert shelf.ends(2, 0.0, blocks=15)
    assert shelf.book.drop(0, PS_PER_S, Unpin.RETURN)
    assert shelf.ends(1, 1.0, blocks=20)
    assert shelf.book.blocks == 35


def test_the_largest_key_gives_way_first_and_of_equals_the_oldest_pin():
    """Contexts of 100, 300, 200 and 300 tokens are given up as 300, 300, 200, 100."""
    shelf = Shelf(Keep())
    for session, tokens in enumerate((100, 300, 200, 300)):
        shelf.ends(session, 0.0, tokens=tokens)
    assert [shelf.reclaim() for _ in range(5)] == [1, 3, 2, 0, None]


def test_a_waiting_turn_takes_only_pins_that_yield_and_never_its_own():
    """Session 2 waits: its own pin is its prefix hit, and session 1's does not yield."""
    shelf = Shelf(Keep(yields=(0, 2)))
    for session, tokens in enumerate((100, 200, 300)):
        shelf.ends(session, 0.0, tokens=tokens)
    assert [shelf.reclaim(waiting=2) for _ in range(2)] == [0, None]
    assert shelf.reclaim() == 2


@pytest.mark.parametrize("spares", [False, True])
def test_a_session_that_is_back_is_spared_if_the_policy_says_so(spares):
    """Both pins are due at 5 s; session 1's next turn has been waiting since before."""
    shelf = Shelf(Keep(ttl_s=5, spares=spares))
    for session in range(2):
        shelf.ends(session, 0.0)
    shelf.book.returned(1)
    assert shelf.review(5.0)
    assert [pin.session for pin in shelf.book.pins()] == ([1] if spares else [])


def test_the_policy_reviews_after_a_change_and_at_its_interval():
    """Every 4 s while there are pins: at 1 s (a pin is new), not at 3 s, at 5 s; at 6 s because
    something happened; never without a pin.
    """
    policy = Keep(review_s=4.0)
    shelf = Shelf(policy)
    assert not shelf.review(0.0)
    shelf.ends(0, 0.5)
    for at_s in (1.0, 3.0, 5.0):
        shelf.review(at_s)
    shelf.book.dirty = True
    shelf.review(6.0)
    assert policy.reviewed_s == [1.0, 5.0, 6.0]
    assert shelf.book.next_change_ps == 10 * PS_PER_S
    policy.gives_up = (0,)
    assert shelf.review(10.0)
    assert shelf.heard[-1] == ("EXPIRE", 0, 10, 9)


def test_nothing_is_kept_of_a_last_turn_of_no_blocks_or_until_now():
    """A session that ends, a turn without a full block, and a time that has passed."""
    assert not Shelf(Keep()).ends(0, 0.0, last=True)
    assert not Shelf(Keep()).ends(0, 0.0, blocks=0)
    assert not Shelf(Keep(ttl_s=0.0)).ends(0, 5.0)


def test_answers_that_make_no_sense_are_errors():
    """Not a number of seconds, and giving up a session that has no pin."""
    with pytest.raises(PolicyError, match="on_turn_end of session 7: not a number"):
        Shelf(Keep(ttl_s=math.nan)).ends(7, 0.0)
    policy = Keep(review_s=0.0)
    shelf = Shelf(policy)
    shelf.ends(0, 0.0)
    policy.gives_up = (3,)
    with pytest.raises(PolicyError, match="review gave up session 3, which has no pin"):
        shelf.review(1.0)

"""Tool calls that nobody announced count as running only for as long as such calls take."""

from __future__ import annotations

import asyncio

import pytest

from marsbench.events import Kind
from marsbench.gateway.backends.fake import FakeAnswer
from marsbench.gateway.control import guesses
from marsbench.gateway.control.guesses import ExpectedReturns
from marsbench.registry import load
from marsbench.system import Policies, System

USER = {"role": "user", "content": "go"}
BASH = (("c1", "bash", '{"command": "make"}'),)


def calling(_number, _body):
    return FakeAnswer(output=("x",), calls=BASH)


def window(size: int) -> dict:
    return {"system": load("SYSTEMS", "static"), "params": {"window": size}}


def test_the_bound_follows_what_is_known_of_a_clients_calls():
    """Nothing known: 30 s. One call of 8 s: 8 + 4 x 4 = 24 s; ten more of 8 s narrow it. Another
    tool of that client falls back on all its tools, another client knows nothing."""
    returns = ExpectedReturns()
    assert returns.bound_s("a", "bash") == 30
    returns.observe("a", "bash", 8.0)
    assert returns.bound_s("a", "bash") == 24
    for _ in range(10):
        returns.observe("a", "bash", 8.0)
    # the deviation shrinks by a quarter each time: 8 + 4 x 4 x 0.75^10
    assert returns.bound_s("a", "bash") == pytest.approx(8 + 16 * 0.75**10)
    assert returns.bound_s("a", "pytest") == returns.bound_s("a", "bash")
    assert returns.bound_s("b", "bash") == 30
    returns.observe("a", "ls", 0.001)
    assert returns.bound_s("a", "ls") == 2, "a bound is never shorter than two seconds"


def test_a_call_that_does_not_come_back_stops_counting(rig, eventually, monkeypatch):
    """Thought to run for as long as such calls take, then no more: the session goes on all the same
    when its result comes after all, and only then does the call end in the log."""
    monkeypatch.setattr(guesses, "START_S", 0.2)

    async def story():
        async with rig(calling) as r:
            await r.chat([USER], session="a")
            assert r.gateway.slots.running == 1
            await eventually(lambda: r.gateway.slots.running == 0)
            assert r.events(Kind.TOOL_END) == []
            answer = await r.chat([USER, USER], session="a")
            assert answer.headers["x-session-id"] == "a"
            assert len(r.events(Kind.TOOL_END)) == 1
            assert len(r.events(Kind.SESSION_ARRIVE)) == 1

    asyncio.run(story())


class Diary(list):
    """A policy object that writes down what it hears, and admits by a window of one."""

    gates_continuations = False
    tick_s = None

    def on_event(self, event):
        self.append((event.kind, event.session))

    def admit(self, pending, view, now_s):
        return pending[: 1 - len(view.active)]


def test_the_place_of_a_session_that_may_never_come_back_is_lent(rig, monkeypatch):
    """Window 1: a's call is overdue, so b enters at once; policies hear that a ended. When a comes
    back it arrives anew for them and is let in at once; in the log it arrived once."""
    monkeypatch.setattr(guesses, "START_S", 0.2)
    diary = Diary()

    async def story():
        system = System(name="d", summary="", build=lambda _c: Policies(admission=diary))
        async with rig(calling, system=system) as r:
            await r.chat([USER], session="a")
            async with asyncio.timeout(5):
                assert (await r.chat([USER], session="b")).status_code == 200
            assert r.gateway.control.lent == 1
            assert (Kind.SESSION_END, 0) in diary
            async with asyncio.timeout(5):
                assert (await r.chat([USER, USER], session="a")).status_code == 200
            assert diary.count((Kind.SESSION_ARRIVE, 0)) == 2
            assert [s for _, s, _ in r.events(Kind.SESSION_ARRIVE)] == [0, 1]
            assert r.events(Kind.SESSION_END) == []
            assert len(r.gateway.control.fleet.active) == 2

    asyncio.run(story())


def test_a_session_with_an_open_call_outlives_the_idle_time(rig, eventually):
    """Silent for longer than session_idle_s: a's tools may still run and it stays, b has none and
    has ended. After call_idle_s a has ended, too."""

    async def story():
        plans = [FakeAnswer(calls=BASH), FakeAnswer()]
        timeouts = {"session_idle_s": 0.2, "call_idle_s": 1.2}
        async with rig(lambda number, _body: plans[number], timeouts=timeouts) as r:
            await r.chat([USER], session="a")
            await r.chat([USER], session="b")
            await eventually(lambda: len(r.events(Kind.SESSION_END)) == 1)
            assert r.events(Kind.SESSION_END)[0][1] == 1
            assert r.gateway.control.table.find("addr:127.0.0.1", "a") is not None
            await eventually(lambda: len(r.events(Kind.SESSION_END)) == 2)

    asyncio.run(story())


def test_a_failed_turn_that_is_asked_again_after_silence_is_the_same_session(rig, eventually):
    """Its backend was away for longer than a silent session lasts; the client asks with the same
    prompt, and the session goes on with all of its turns."""
    plans = [FakeAnswer(), FakeAnswer(fault="cut"), FakeAnswer()]

    async def story():
        async with rig(lambda number, _b: plans[number], timeouts={"session_idle_s": 0.2}) as r:
            await r.chat([USER], session="a")
            broken = await r.chat([USER, USER, USER], session="a", stream=True)
            assert "broke off" in broken.text
            await eventually(lambda: len(r.events(Kind.SESSION_END)) == 1)
            again = await r.chat([USER, USER, USER], session="a", stream=True)
            live = next(iter(r.gateway.control.table.sessions.values()))
            assert again.text.endswith("data: [DONE]\n\n")
            assert [body["session_id"] for body in r.backends[0].bodies] == ["a", "a", "a"]
            assert live.turns_before + live.turns_sent == 3

    asyncio.run(story())


@pytest.mark.parametrize("session", ["a", ""])
def test_a_session_that_ended_in_silence_is_known_by_its_prompt(rig, eventually, session):
    """It goes on under its id, and its prompt is expected in the cache; with another prompt the
    name means a new session."""

    async def story():
        async with rig(timeouts={"session_idle_s": 0.2}) as r:
            first = await r.chat([USER], session=session)
            name = first.headers["x-session-id"]
            await eventually(lambda: len(r.events(Kind.SESSION_END)) == 1)
            reply = first.json()["choices"][0]["message"]
            again = await r.chat([USER, reply, USER], session=session)
            assert again.headers["x-session-id"] == name
            assert [body["session_id"] for body in r.backends[0].bodies] == [name, name]
            live = r.gateway.control.table.find("addr:127.0.0.1", name)
            assert live.reused_tokens > 0
            assert live.turns_before + live.turns_sent == 2, "as its client counts"
            await eventually(lambda: len(r.events(Kind.SESSION_END)) == 2)
            await r.chat([{"role": "user", "content": "else"}], session=session)
            assert r.backends[0].bodies[2]["session_id"] != name

    asyncio.run(story())

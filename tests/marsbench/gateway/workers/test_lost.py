"""A worker's channel ends: what came through it is given up, and nobody waits for an answer for ever."""

from __future__ import annotations

import asyncio
import dataclasses
import functools

from marsbench.admission.base import Oversubscribe
from marsbench.gateway.backends.fake import FakeAnswer
from marsbench.registry import load

USER = {"role": "user", "content": "go"}


class OneSlot(Oversubscribe):
    """One call at a time."""

    def slots(self, view, now_s):
        return 1


def system():
    """A window of sessions, and one call at a time."""
    static = load("SYSTEMS", "static")

    def build(context):
        policies = static.build(context)
        policies.tools = OneSlot()
        return policies

    return dataclasses.replace(static, build=build)


def cut(worker):
    """End the channel as a dead process does."""
    worker.desk._channel._transport.abort()


def test_turns_and_calls_of_a_lost_worker_are_given_up(rig, eventually):
    """Window 1, one slot: a's turn is in the engine, b waits for admission, a second call of a's waits
    for its slot. When the worker is lost, a's turn has ended and its session goes on, b is forgotten,
    the call has left the queue; the clients are told that it is over."""

    async def story():
        hang = lambda _n, _b: FakeAnswer(fault="hang")  # noqa: E731
        async with rig(hang, remote=True, system=system(), params={"window": 1}) as r:
            control, slots, desk = r.gateway.control, r.gateway.slots, r.gateway.desk
            turn = asyncio.create_task(r.chat([USER], session="a"))
            await eventually(lambda: r.backends[0].running == 1)
            waiting = asyncio.create_task(r.chat([USER], session="b"))
            await eventually(lambda: control.num_pending == 1)
            acquire = functools.partial(
                r.client.post, "/v1/tools/acquire", json={"session_id": "a", "name": "bash"}
            )
            assert (await acquire()).status_code == 200
            call = asyncio.create_task(acquire())
            await eventually(lambda: slots.queued == 1)
            cut(r.front)
            await eventually(lambda: not desk.turns and not slots.queued)
            assert control.num_pending == 0
            assert [s.session_id for s in control.table.sessions.values()] == ["a"]
            assert [view.in_flight for view in r.gateway.pool.views] == [0]
            assert r.front.desk.lost
            assert r.front.server.should_exit
            assert (await waiting).status_code == 503
            assert (await call).status_code == 503
            late = await r.chat([USER], session="d")
            assert late.status_code == 503
            turn.cancel()
            await asyncio.gather(turn, return_exceptions=True)

    asyncio.run(story())

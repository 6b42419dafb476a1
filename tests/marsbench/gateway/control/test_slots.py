"""Tool slots: a harness waits for one, runs its tool, gives it back; policies order the queue."""

from __future__ import annotations

import asyncio

import pytest
from starlette.requests import Request

from marsbench.admission.base import Niceness
from marsbench.events import Kind
from marsbench.gateway.backends.fake import FakeAnswer
from marsbench.gateway.http.endpoints import ToolEndpoints
from marsbench.gateway.problems import ApiProblem
from marsbench.system import Policies, System

USER = {"role": "user", "content": "go"}


class Slots:
    """A dispatch policy with a fixed number of slots, newest call first."""

    def __init__(self, count):
        self.count = count

    def on_event(self, event):
        pass

    def slots(self, view, now_s):
        return self.count

    def next_call(self, queue, view, now_s):
        return len(queue) - 1

    def niceness(self, call, view, now_s):
        return Niceness(7, 2.5)


def system(count) -> System:
    return System(name="slots", summary="", build=lambda _c: Policies(tools=Slots(count)))


def plan(_number, _body):
    return FakeAnswer(output=("x",), calls=(("c1", "bash", '{"command":"make"}'),))


async def acquire(r, name="bash", **extra):
    body = {"session_id": "a", "name": name, **extra}
    return await r.client.post("/v1/tools/acquire", json=body)


async def release(r, answer, **extra):
    return await r.client.post("/v1/tools/release", json={"lease": answer.json()["lease"], **extra})


def test_calls_wait_for_a_slot_in_the_policys_order(any_rig, eventually):
    """One slot, newest first: x runs, y and z wait, z starts before y."""

    async def story():
        async with any_rig(plan, system=system(1)) as r:
            await r.chat([USER], session="a")
            x = await acquire(r, "x")
            y = asyncio.create_task(acquire(r, "y"))
            await eventually(lambda: r.gateway.slots.queued == 1)
            z = asyncio.create_task(acquire(r, "z"))
            await eventually(lambda: r.gateway.slots.queued == 2)
            await release(r, x)
            z_answer = await z
            assert not y.done()
            await release(r, z_answer)
            y_answer = await y
            assert y_answer.json()["waited_s"] > 0
            await release(r, y_answer)
            assert r.gateway.slots.running == 1, "only the announced bash call is thought to run"

    asyncio.run(story())


def test_lease_replaces_the_inferred_call(any_rig):
    """The reply announced bash: its lease has the same call index, and ends once."""

    async def story():
        async with any_rig(plan, system=system(2)) as r:
            await r.chat([USER], session="a")
            lease = await acquire(r)
            assert (lease.json()["nice"], lease.json()["nice_after_cpu_s"]) == (7, 2.5)
            assert r.gateway.slots.running == 1
            await release(r, lease, error=True, cpu_s=0.5)
            await r.chat([USER, USER], session="a")
            rows = r.gateway.bus.log.to_numpy()
            tools = [
                (Kind(int(k)).name, int(call))
                for k, call in rows[:, [1, 4]]
                if Kind.TOOL_ENQUEUED <= k <= Kind.TOOL_END
            ]
            assert tools[:5] == [
                ("TOOL_ENQUEUED", 0), ("TOOL_START", 0),  # as announced
                ("TOOL_ENQUEUED", 0), ("TOOL_START", 0), ("TOOL_END", 0),  # as leased
            ]  # fmt: skip
            leased = [row for row in rows if row[1] == Kind.TOOL_START][1]
            assert leased[7:9].tolist() == [7, 2_500_000_000_000]
            end = next(row for row in rows if row[1] == Kind.TOOL_END)
            assert (int(end[7]), int(end[8])) == (1, 500_000_000_000)

    asyncio.run(story())


def test_lease_expires_and_can_be_renewed(any_rig, eventually):
    """After 0.3 s without renewal the slot is free again, and the old lease is unknown."""

    async def story():
        async with any_rig(plan, system=system(1), timeouts={"session_idle_s": 0.4}) as r:
            await r.chat([USER], session="a")
            lease = await acquire(r, lease_s=0.3)
            renewed = await r.client.post(
                "/v1/tools/renew", json={"lease": lease.json()["lease"], "lease_s": 0.5}
            )
            assert renewed.json()["expires_s"] > 0.4
            await eventually(lambda: r.gateway.slots.expired == 1)
            assert (await release(r, lease)).status_code == 404

    asyncio.run(story())


def test_waiting_client_that_leaves_or_times_out_gives_up_its_place(any_rig, eventually):
    """The queue holds only calls somebody still waits for."""

    async def story():
        async with any_rig(plan, system=system(1)) as r:
            await r.chat([USER], session="a")
            held = await acquire(r)
            late = await acquire(r, "y", timeout_s=0.1)
            assert late.status_code == 503
            gone = asyncio.create_task(acquire(r, "z"))
            await eventually(lambda: r.gateway.slots.queued == 1)
            gone.cancel()
            await eventually(lambda: r.gateway.slots.queued == 0)
            assert (await release(r, held)).json()["held_s"] > 0

    asyncio.run(story())


def test_unknown_sessions_and_bad_fields_are_refused(any_rig):
    """404 for a session nobody has begun, 400 for a missing name."""

    async def story():
        async with any_rig(plan) as r:
            assert (await acquire(r)).status_code == 404
            await r.chat([USER], session="a")
            answer = await r.client.post("/v1/tools/acquire", json={"session_id": "a"})
            assert answer.status_code == 400
            assert "name" in answer.json()["error"]["message"]
            assert (await acquire(r, lease_s="soon")).status_code == 400

    asyncio.run(story())


def test_session_with_a_lease_is_not_idle(any_rig):
    """A tool that runs longer than the idle time keeps its session."""

    async def story():
        async with any_rig(plan, timeouts={"session_idle_s": 0.2}) as r:
            await r.chat([USER], session="a")
            lease = await acquire(r)
            await asyncio.sleep(0.6)
            assert r.gateway.control.table.find("addr:127.0.0.1", "a") is not None
            assert (await release(r, lease)).status_code == 200

    asyncio.run(story())


def test_leases_end_with_their_session(any_rig, eventually):
    """The client ends the session while one call holds a slot and one waits: both are over."""

    async def story():
        async with any_rig(plan, system=system(1)) as r:
            await r.chat([USER], session="a")
            held = await acquire(r)
            waiting = asyncio.create_task(acquire(r, "y"))
            await eventually(lambda: r.gateway.slots.queued == 1)
            await r.client.post("/v1/sessions/a/end")
            assert (await waiting).status_code == 409
            assert (await release(r, held)).status_code == 404
            assert (r.gateway.slots.queued, r.gateway.slots.running) == (0, 0)
            kinds = [k for k, _, _ in r.events()]
            assert kinds[-1] == Kind.SESSION_END

    asyncio.run(story())


def test_a_slot_granted_as_its_client_leaves_is_free_again(any_rig, eventually):
    """The grant and the client's end are seen in the same instant: nobody would ever release it."""

    async def story():
        async with any_rig(plan, system=system(1)) as r:
            await r.chat([USER], session="a")
            sent = [
                {"type": "http.request", "body": b'{"session_id":"a","name":"x"}'},
                {"type": "http.disconnect"},
            ]

            async def receive():
                return sent.pop(0)

            scope = {
                "type": "http", "method": "POST", "path": "/v1/tools/acquire", "headers": [],
                "marsbench.client": "addr:127.0.0.1",
            }  # fmt: skip
            with pytest.raises(ApiProblem, match="went away"):
                await ToolEndpoints(r.gateway).acquire(Request(scope, receive))
            assert r.gateway.slots.held == {}
            assert (await acquire(r, "y", timeout_s=1)).status_code == 200

    asyncio.run(story())

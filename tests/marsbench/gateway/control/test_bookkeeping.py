"""Whatever happens to turns, sessions and leases, the control plane's book adds up afterwards."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from marsbench.events import Kind
from marsbench.gateway.backends.fake import FakeAnswer, FakeBackend
from marsbench.registry import load

USER = {"role": "user", "content": "go"}


def chaos(seed):
    """A backend that answers, fails, breaks off and hangs, in an order drawn from a seed."""
    rng = np.random.default_rng(seed)
    calls = (("c1", "bash", '{"command":"make"}'), ("c2", "task", "{}"))
    plans = (
        FakeAnswer(calls=calls), FakeAnswer(calls=calls, ttft_s=0.02), FakeAnswer(itl_s=0.01), FakeAnswer(status=500),
        FakeAnswer(status=429), FakeAnswer(status=400), FakeAnswer(fault="cut"), FakeAnswer(fault="garbage"),
        FakeAnswer(fault="hang"),
    )  # fmt: skip
    return lambda _number, _body: plans[rng.integers(len(plans))]


async def client(r, rng, name):
    """An agent that streams or not, leaves in the middle, uses slots, ends or just stops."""
    for turn in range(4):
        choice = rng.integers(6)
        system = {"role": "system", "content": str(rng.integers(2))}
        request = r.chat([system] + [USER] * (turn + 1), session=name, stream=bool(rng.integers(2)))
        try:
            async with asyncio.timeout(0.02 if choice == 0 else 0.3):
                await request
        except TimeoutError:
            continue
        if choice == 1:
            await r.client.post(f"/v1/sessions/{name}/end")
        if choice == 2:
            body = {"session_id": name, "name": "bash", "timeout_s": 0.1, "lease_s": 0.1}
            lease = await r.client.post("/v1/tools/acquire", json=body)
            if lease.status_code == 200 and rng.integers(2):
                await r.client.post("/v1/tools/release", json={"lease": lease.json()["lease"]})


@pytest.mark.parametrize(
    ("name", "seed"), [("vllm", 0), ("static", 0), ("static", 1), ("concur", 1)]
)
def test_nothing_is_left_over_when_all_sessions_have_ended(any_rig, eventually, name, seed):
    """Twelve agents in a storm of faults: afterwards no turn, call, slot or session remains, and
    each session's events are in order: one arrival, at most one admission, one end."""

    async def story():
        rng = np.random.default_rng(100 + seed)
        fakes = [FakeBackend(plan=chaos(seed)), FakeBackend(plan=chaos(seed + 50))]
        timeouts = {
            "session_idle_s": 0.15,
            "call_idle_s": 0.3,
            "upstream_read_s": 0.15,
            "admission_s": 0.2,
        }
        async with any_rig(
            backends=fakes, system=load("SYSTEMS", name), timeouts=timeouts, tool_cores=2
        ) as r:
            clients = (client(r, rng, f"agent-{k % 9}") for k in range(12))
            await asyncio.gather(*clients, return_exceptions=True)
            control, slots = r.gateway.control, r.gateway.slots
            await eventually(lambda: not control.table.sessions)
            assert not r.front.proxy.in_flight
            assert control.num_pending == 0
            assert control.guesses.running == 0
            assert control.fleet.active == []
            assert [view.in_flight for view in r.gateway.pool.views] == [0, 0]
            assert (slots.queued, len(slots.held)) == (0, 0)
            assert control.table._marks == control.table._names == control.table._responses == {}
            return r.events()

    events = asyncio.run(story())
    for session in {s for _, s, _ in events if s >= 0}:
        kinds = [k for k, s, _ in events if s == session]
        assert kinds[0] == Kind.SESSION_ARRIVE
        assert kinds[-1] == Kind.SESSION_END
        assert kinds.count(Kind.SESSION_ARRIVE) == kinds.count(Kind.SESSION_END) == 1
        assert kinds.count(Kind.SESSION_ADMIT) <= 1
        assert kinds.count(Kind.GPU_SUBMIT) == kinds.count(Kind.GPU_END)

"""Policies decide in the gateway as they do in the simulator, and their book is kept right."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from marsbench.admission.base import Unlimited
from marsbench.arrival import ArrivalPlan
from marsbench.core import Session, ToolCall, Turn
from marsbench.engine.life import SessionState
from marsbench.errors import ConfigError
from marsbench.events import Kind, Status
from marsbench.experiment.wiring import Setup, simulate
from marsbench.gateway.backends.fake import FakeAnswer, FakeBackend
from marsbench.gateway.control import plane
from marsbench.gateway.control.bus import EventBus, WallClock
from marsbench.gateway.http.server import build_gateway
from marsbench.gateway.settings import GatewaySettings
from marsbench.registry import load
from marsbench.system import Policies, System

USER = {"role": "user", "content": "go"}
BASH = (("c1", "bash", '{"command": "pytest -q"}'),)


def slow(_number, _body):
    return FakeAnswer(ttft_s=0.15)


def window(size: int) -> dict:
    return {"system": load("SYSTEMS", "static"), "params": {"window": size}}


def test_static_window_admits_sessions_one_after_another(rig, eventually):
    """Window 1: b waits while a is active, also between a's turns, and enters when a ends."""

    async def story():
        async with rig(slow, **window(1)) as r:
            await r.chat([USER], session="a")
            second = asyncio.create_task(r.chat([USER], session="b"))
            await eventually(lambda: r.gateway.control.num_pending == 1)
            await r.chat([USER, USER], session="a")
            assert not second.done(), "continuations of admitted sessions pass, new ones wait"
            ended = await r.client.post("/v1/sessions/a/end")
            assert ended.json() == {"session_id": "a", "turns": 2, "ended": True}
            assert (await second).status_code == 200
            admitted = [s for _, s, _ in r.events(Kind.SESSION_ADMIT)]
            assert admitted == [0, 1]

    asyncio.run(story())


LIFE = set(Kind) - {Kind.KV_STATS, Kind.CPU_STATS, Kind.RUN_END}


@pytest.mark.parametrize("calls_of", [[0], [1, 0], [2, 1, 0]], ids=str)
def test_a_life_is_written_as_by_the_simulator(rig, calls_of):
    """The same session, with so many parallel tool calls after each turn, through the virtual-time
    driver and through the gateway: the same events of the same turns and calls, in the same order."""
    turns = [
        Turn(100, 5, tools=tuple(ToolCall("bash", "script", 0.1) for _ in range(calls)))
        for calls in calls_of
    ]
    outcome = simulate(
        Setup(engine="sim", profile="tiny-cpu", tool_cores=0, tools="recorded"),
        load("SYSTEMS", "vllm"),
        {},
        [Session("a", tuple(turns))],
        ArrivalPlan(times_ps=(0,)),
        seed=0,
    )
    rows = outcome.log.to_numpy().tolist()
    simulated = [(Kind(row[1]).name, *row[2:5]) for row in rows if row[1] in LIFE]

    def plan(number, _body):
        calls = tuple((f"c{k}", "bash", '{"command":"make"}') for k in range(calls_of[number]))
        return FakeAnswer(output=("x",), calls=calls)

    async def story():
        async with rig(plan) as r:
            for turn in range(len(calls_of)):
                last = {"x-session-end": "1"} if turn + 1 == len(calls_of) else None
                await r.chat([USER] * (turn + 1), session="a", stream=True, headers=last)
            return [(Kind(row[1]).name, *row[2:5]) for row in r.gateway.bus.log.to_numpy().tolist()]

    assert sorted_calls(asyncio.run(story())) == sorted_calls(simulated)


def sorted_calls(rows):
    """Parallel calls start and end at one moment: in a run of tool events, by call."""
    found = []
    for _, group in itertools.groupby(rows, lambda row: row[0].startswith("TOOL_")):
        part = list(group)
        if part[0][0].startswith("TOOL_"):
            part.sort(key=lambda row: (row[3], row[0] == "TOOL_END", row[0]))
        found += part
    return found


def test_token_counts_of_the_backend_become_the_sessions_context(rig):
    """Prompt 100 of which 64 are cached, 4 out: context 104, served 36 + 4."""

    async def story():
        def plan(_number, _body):
            return FakeAnswer(cached_tokens=64)

        async with rig(plan) as r:
            ids = list(range(100))
            body = {"model": "m", "prompt": ids, "session_id": "a"}
            await r.client.post("/v1/completions", json=body)
            session = r.gateway.control.table.find("addr:127.0.0.1", "a")
            assert (session.state.prompt_tokens, session.state.context_tokens) == (100, 104)
            assert session.state.served_tokens == 40
            assert r.gateway.control.fleet.prefix_cache_hit_rate == pytest.approx(0.64)

    asyncio.run(story())


@pytest.mark.parametrize("name", ["mars", "thunderagent", "concur", "static", "continuum", "vllm"])
def test_every_kind_of_policy_runs_unchanged(rig, name):
    """Eight sessions of three turns pass through each system, whatever it gates."""

    async def session(r, k):
        messages = [{"role": "user", "content": f"task {k} " * 50}]
        statuses = []
        for _ in range(3):
            answer = await r.chat(messages, session=f"s{k}")
            statuses.append(answer.status_code)
            messages += [answer.json()["choices"][0]["message"], USER]
        await r.client.post(f"/v1/sessions/s{k}/end")
        return statuses

    async def story():
        def plan(_number, _body):
            return FakeAnswer(calls=BASH)

        backend = FakeBackend(plan=plan, num_blocks=4000)
        async with rig(backends=[backend], system=load("SYSTEMS", name), tool_cores=2) as r:
            async with asyncio.timeout(20):
                done = await asyncio.gather(*(session(r, k) for k in range(8)))
            assert done == [[200] * 3] * 8
            assert len(r.events(Kind.SESSION_END)) == 8
            assert r.gateway.control.fleet.active == []

    asyncio.run(story())


def test_recomputed_tokens_are_whole_blocks(rig):
    """A turn that repeats 104 tokens could have had (104 - 1) // 16 = 6 blocks of 16 from the cache;
    with 64 tokens cached, 96 - 64 = 32 were computed again."""

    async def story():
        answers = [FakeAnswer(cached_tokens=0), FakeAnswer(cached_tokens=64)]
        async with rig(lambda number, _body: answers[number]) as r:
            ids = list(range(100))
            for prompt in (ids, [*ids, *range(20)]):
                body = {"model": "m", "prompt": prompt, "session_id": "a"}
                await r.client.post("/v1/completions", json=body)
            rows = r.gateway.bus.log.to_numpy()
            return [int(row[8]) for row in rows if row[1] == Kind.GPU_END]

    assert asyncio.run(story()) == [0, 32]


def test_policies_see_the_backends_memory(rig, eventually):
    """Half of 1000 blocks used: 500 free; a turn in flight takes its prompt's blocks until the
    next reading."""

    async def story():
        backend = FakeBackend(plan=slow, kv_use=0.5)
        async with rig(backends=[backend], timeouts={"telemetry_s": 60}) as r:
            fleet = r.gateway.control.fleet
            assert (fleet.num_blocks, fleet.block_size, fleet.free_blocks) == (1000, 16, 500)
            body = {"model": "m", "prompt": list(range(160)), "session_id": "a"}
            turn = asyncio.create_task(r.client.post("/v1/completions", json=body))
            await eventually(lambda: fleet.free_blocks == 490)  # 160 / 16
            await turn
            await r.gateway.pool.read_telemetry()
            assert fleet.free_blocks == 500

    asyncio.run(story())


def test_turn_that_waits_too_long_is_503_and_leaves_no_trace(rig):
    """After admission_s the client is told to come back; the next session is not held up by it."""

    async def story():
        async with rig(slow, timeouts={"admission_s": 0.2}, **window(1)) as r:
            await r.chat([USER], session="a")
            late = await r.chat([USER], session="b")
            assert late.status_code == 503
            assert late.json()["error"]["code"] == "admission_timeout"
            assert late.headers["retry-after"] == "30"
            assert r.gateway.control.num_pending == 0
            assert len(r.backends[0].bodies) == 1
            await r.client.post("/v1/sessions/a/end")
            assert (await r.chat([USER], session="c")).status_code == 200

    asyncio.run(story())


def test_client_that_leaves_while_pending_gives_up_its_place(rig, eventually):
    """b disconnects in the backlog; when a ends, c enters."""

    async def story():
        async with rig(slow, **window(1)) as r:
            await r.chat([USER], session="a")
            b = asyncio.create_task(r.chat([USER], session="b"))
            await eventually(lambda: r.gateway.control.num_pending == 1)
            b.cancel()
            await eventually(lambda: r.gateway.control.num_pending == 0)
            c = asyncio.create_task(r.chat([USER], session="c"))
            await eventually(lambda: r.gateway.control.num_pending == 1)
            await r.client.post("/v1/sessions/a/end")
            assert (await c).status_code == 200
            assert len(r.backends[0].bodies) == 2

    asyncio.run(story())


def test_silent_sessions_end_and_make_room(rig):
    """a says nothing for 0.3 s: it has ended, b is admitted without anybody's help."""

    async def story():
        async with rig(timeouts={"session_idle_s": 0.3}, **window(1)) as r:
            await r.chat([USER], session="a")
            async with asyncio.timeout(5):
                assert (await r.chat([USER], session="b")).status_code == 200
            assert len(r.events(Kind.SESSION_END)) >= 1

    asyncio.run(story())


def test_many_silent_sessions_end_in_several_goes(rig, eventually, monkeypatch):
    """The reaper looks at a few sessions at a time, and yet at all of them."""
    monkeypatch.setattr(plane, "REAP_MOST", 2)

    async def story():
        async with rig(timeouts={"session_idle_s": 0.2}) as r:
            for name in "abcde":
                await r.chat([USER], session=name)
            await eventually(lambda: not r.gateway.control.table.sessions)

    asyncio.run(story())


def test_last_turn_header_ends_the_session(rig):
    """x-session-end: 1 on a request: the session is over with its reply."""

    async def story():
        async with rig() as r:
            await r.chat([USER], session="a", headers={"x-session-end": "1"})
            assert r.gateway.control.table.sessions == {}
            assert [k for k, _, _ in r.events(Kind.SESSION_END)] == [Kind.SESSION_END]

    asyncio.run(story())


class Never:
    """Admits nothing, ever."""

    gates_continuations = False
    tick_s = None

    def on_event(self, event):
        pass

    def admit(self, pending, view, now_s):
        return ()


class OneAtATime(Unlimited):
    """Extends the null policy, and does hold turns back."""

    def admit(self, pending, view, now_s):
        return pending[:1] if not view.active else ()


def test_a_policy_that_extends_the_null_policy_is_asked(rig, eventually):
    """Only the null policy itself is passed over: one that extends it may decide anything."""

    async def story():
        system = System(name="one", summary="", build=lambda _c: Policies(admission=OneAtATime()))
        async with rig(system=system) as r:
            await r.chat([USER], session="a")
            second = asyncio.create_task(r.chat([USER], session="b"))
            await eventually(lambda: r.gateway.control.num_pending == 1)
            await r.client.post("/v1/sessions/a/end")
            assert (await second).status_code == 200

    asyncio.run(story())


def test_a_policy_that_admits_nothing_cannot_stop_the_gateway(rig):
    """With nothing active the first pending turn is let in, and that is counted."""

    async def story():
        system = System(name="never", summary="", build=lambda _c: Policies(admission=Never()))
        async with rig(system=system) as r:
            async with asyncio.timeout(5):
                assert (await r.chat([USER], session="a")).status_code == 200
            assert r.gateway.control.overrides == 1

    asyncio.run(story())


def test_systems_that_know_the_future_are_refused():
    """The oracle cannot run live; the error says so before anything listens."""
    settings = GatewaySettings(backends=("http://127.0.0.1:1",), system="oracle")
    with pytest.raises(ConfigError, match="future"):
        build_gateway(settings)


def test_priority_is_forwarded_only_where_the_system_uses_it(rig):
    """vllm-priority sends arrival times in microseconds as vLLM priorities, as every driver does."""

    async def story():
        async with rig(system=load("SYSTEMS", "vllm-priority")) as r:
            for name in ("a", "b"):
                await r.chat([USER], session=name)
            sessions = [r.gateway.control.table.find("addr:127.0.0.1", name) for name in "ab"]
            sent = [body["priority"] for body in r.backends[0].bodies]
            assert sent == [session.state.arrival_ps // 10**6 for session in sessions]
            assert 0 < sent[0] < sent[1]

    asyncio.run(story())


def test_admissions_and_ends_come_in_the_simulators_order(rig):
    """Two places, four sessions, gaps of 0.6 s (a), 0.15 s (c): a and b enter, b ends and lets c
    in, c ends and lets d in, d ends, then a. The simulator and the gateway agree on all eight."""
    gaps = {"a": [0.6], "b": [], "c": [0.15], "d": []}

    def recorded(name):
        turns = [Turn(100, 5, tools=(ToolCall("bash", "script", gap),)) for gap in gaps[name]] + [
            Turn(100, 5)
        ]
        return Session(name, tuple(turns))

    outcome = simulate(
        Setup(engine="sim", profile="tiny-cpu", tool_cores=0, tools="recorded"),
        load("SYSTEMS", "static"),
        {"window": 2},
        [recorded(name) for name in gaps],
        ArrivalPlan(times_ps=(0, 10**9, 2 * 10**9, 3 * 10**9)),
        seed=0,
    )
    wanted = {Kind.SESSION_ADMIT, Kind.SESSION_END}
    simulated = [(int(r[1]), int(r[2])) for r in outcome.log.to_numpy() if r[1] in wanted]

    async def agent(r, name, k):
        await asyncio.sleep(0.03 * k)
        for turn, gap in enumerate([*gaps[name], 0.0]):
            last = turn == len(gaps[name])
            headers = {"x-session-end": "1"} if last else None
            await r.chat([USER] * (turn + 1), session=name, headers=headers)
            await asyncio.sleep(gap)

    async def story():
        async with rig(**window(2)) as r:
            await asyncio.gather(*(agent(r, name, k) for k, name in enumerate(gaps)))
            return [(k, s) for k, s, _ in r.events(*wanted)]

    assert asyncio.run(story()) == simulated
    assert len(simulated) == 8


def test_a_session_that_begins_with_a_mistake_ends_at_once(rig):
    """A 404 for an unknown model keeps no place in the window; a 429 does, for the retry."""

    async def story():
        plans = [FakeAnswer(status=404), FakeAnswer(status=429), FakeAnswer()]
        backend = FakeBackend(plan=lambda number, _body: plans[number])
        async with rig(backends=[backend], **window(1)) as r:
            assert (await r.chat([USER], session="a")).status_code == 404
            assert r.gateway.control.fleet.active == []
            assert (await r.chat([USER], session="b")).status_code == 429
            assert [s.session_id for s in r.gateway.control.fleet.active] == ["b"]
            assert (await r.chat([USER], session="b")).status_code == 200

    asyncio.run(story())


class Broken(Never):
    """Fails whenever it is asked without anybody having just arrived."""

    def admit(self, pending, view, now_s):
        if view.active:
            raise ZeroDivisionError("a bug in somebody's policy")
        return pending


def test_a_policy_that_raises_fails_its_requests_not_the_gateway(rig):
    """The second session's request is a 500 in OpenAI style; the first session goes on."""

    async def story():
        system = System(name="broken", summary="", build=lambda _c: Policies(admission=Broken()))
        async with rig(system=system) as r:
            assert (await r.chat([USER], session="a")).status_code == 200
            answer = await r.chat([USER], session="b")
            assert answer.status_code == 500
            assert answer.json()["error"]["type"] == "server_error"
            assert r.gateway.control.num_pending == 0
            assert (await r.chat([USER, USER], session="a")).status_code == 200

    asyncio.run(story())


def test_the_log_of_a_long_life_stays_bounded():
    """Beyond max_events the oldest half goes, with the ids of sessions nobody mentions any more."""
    bus = EventBus(WallClock(), max_events=100)
    for session in range(1000):
        bus.register(session, f"s{session}")
        state = SessionState(session, f"s{session}")
        bus.life.arrive(state, bus.clock.now_ps(), 1)
        bus.life.end(state, bus.clock.now_ps(), Status.OK)
        bus.make_room()
    assert len(bus.log) <= 100
    assert bus.dropped + len(bus.log) == 2000
    assert bus.log.session_ids[999] == "s999"
    assert sum(map(bool, bus.log.session_ids)) <= 51


def test_first_turns_are_expected_to_share_their_system_message(rig):
    """Nothing is cached for the first session; the second repeats its system message, which is
    about nine tenths of the prompt."""

    async def story():
        system = {"role": "system", "content": "You fix bugs carefully. " * 40}
        async with rig() as r:
            for name in ("a", "b"):
                await r.chat([system, {"role": "user", "content": name * 90}], session=name)
            rows = r.gateway.bus.log.to_numpy()
            return [tuple(row[5:7]) for row in rows if row[1] == Kind.GPU_SCHED_FIRST]

    (first, _), (cached, uncached) = asyncio.run(story())
    assert first == 0
    assert cached / (cached + uncached) == pytest.approx(0.91, abs=0.02)

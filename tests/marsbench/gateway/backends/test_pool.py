"""Several backends: sessions stay where their KV is, sick backends get no turns and come back."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace

import httpx

from marsbench.events import Event, Kind
from marsbench.gateway.app import Gateway
from marsbench.gateway.backends.fake import FakeAnswer, FakeBackend
from marsbench.gateway.backends.routing import StickyLeastLoaded
from marsbench.gateway.control.views import read_metrics
from marsbench.gateway.http.server import make_server
from marsbench.gateway.settings import GatewaySettings, Timeouts

USER = {"role": "user", "content": "go"}


def test_sessions_stick_and_spread(rig):
    """Six sessions over two backends: three each, and every turn where the first one was."""

    async def story():
        fakes = [FakeBackend(), FakeBackend()]
        async with rig(backends=fakes) as r:
            for turn in range(3):
                for k in range(6):
                    await r.chat([USER] * (turn + 1), session=f"s{k}")
            homes = [Counter(body["session_id"] for body in fake.bodies) for fake in fakes]
            assert [len(home) for home in homes] == [3, 3]
            assert all(count == 3 for home in homes for count in home.values())

    asyncio.run(story())


def test_a_turn_that_was_never_sent_goes_elsewhere(rig):
    """The home backend refuses connections: the turn moves, the client sees nothing, the session
    stays at its new home."""

    async def story():
        fakes = [FakeBackend(), FakeBackend()]
        async with rig(backends=fakes, timeouts={"health_s": 60}) as r:
            await r.chat([USER], session="a")
            dead = r.backend_servers[0]
            for listener in dead.servers:
                listener.close()
            for connection in list(dead.server_state.connections):
                connection.transport.abort()
            await asyncio.sleep(0.05)
            answer = await r.chat([USER, USER], session="a")
            assert answer.status_code == 200
            assert len(fakes[1].bodies) == 1
            await r.chat([USER] * 3, session="a")
            assert len(fakes[1].bodies) == 2
            assert r.gateway.pool.views[0].in_flight == 0
            assert r.gateway.pool.views[1].in_flight == 0

    asyncio.run(story())


def test_failing_health_checks_eject_and_bring_back(rig, eventually):
    """Three failures in a row eject; one good check brings the backend back."""

    async def story():
        fakes = [FakeBackend(), FakeBackend()]
        async with rig(backends=fakes, timeouts={"health_s": 0.05}) as r:
            fakes[0].healthy = False
            await eventually(lambda: r.gateway.pool.healthy == [1])
            for k in range(4):
                await r.chat([USER], session=f"s{k}")
            assert (len(fakes[0].bodies), len(fakes[1].bodies)) == (0, 4)
            fakes[0].healthy = True
            await eventually(lambda: r.gateway.pool.healthy == [0, 1])
            await r.chat([USER], session="new")
            assert len(fakes[0].bodies) == 1, "the new session goes where fewest are"
            fakes[0].healthy = fakes[1].healthy = False
            await eventually(lambda: r.gateway.pool.healthy == [])
            assert (await r.client.get("/ready")).status_code == 503
            assert (await r.chat([USER], session="late")).status_code == 503

    asyncio.run(story())


def test_server_errors_eject_client_errors_do_not(rig):
    """Three 500s in a row eject one of two backends; 400s never do; and the last healthy one stays
    whatever it answers."""

    async def story():
        def plan(number, _body):
            return FakeAnswer(status=200 if number == 0 else 400 if number < 5 else 500)

        fakes = [FakeBackend(plan=plan), FakeBackend(plan=lambda _n, _b: FakeAnswer(status=500))]
        async with rig(backends=fakes, timeouts={"health_s": 60}) as r:
            await r.chat([USER], session="a")
            for _ in range(4):
                await r.chat([USER], session="a", model="x")
            assert r.gateway.pool.healthy == [0, 1]
            for _ in range(3):
                await r.chat([USER], session="a")
            assert r.gateway.pool.healthy == [1]
            for _ in range(5):
                assert (await r.chat([USER], session="a")).status_code == 500
            assert r.gateway.pool.healthy == [1]

    asyncio.run(story())


def test_vllm_metrics_are_read_over_all_engines():
    """Two data-parallel engines: counts add up, use is their mean, blocks are the sum,
    vLLM's null block of each left out."""
    page = """# HELP vllm:num_requests_running Number of requests
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting{engine="0",model_name="m"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.25
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 1.5e+03
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 1000.0
vllm:num_preemptions_total{engine="0",model_name="m"} 2.0
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="100"} 1.0
vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="110"} 1.0
"""
    answer = read_metrics(page.encode())
    assert answer is not None
    kind, found = answer
    assert (kind, found.running, found.waiting, found.preemptions) == ("vllm", 7, 1, 2)
    assert found.kv_usage == 0.375
    assert (found.queried_tokens, found.hit_tokens) == (1500, 1000)
    assert (found.num_blocks, found.block_size) == (208, 16)
    assert read_metrics(b"process_cpu_seconds_total 1.0\n") is None


def test_gateway_that_starts_first_waits_and_then_comes_up(rig_parts, eventually):
    """Without a backend: not ready, turns get 503. When one comes up it is found, and policies see
    its memory."""
    parts = rig_parts

    async def story():
        sock = parts.reserve()
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        settings = GatewaySettings(
            backends=(url,), timeouts=Timeouts(start_s=0.1, health_s=0.05, telemetry_s=0.05)
        )
        gateway = Gateway(settings, parts.STOCK, parts.CONTEXT)
        listener = parts.listen()
        server = await parts.start(make_server(gateway), listener)
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with httpx.AsyncClient(base_url=base, trust_env=False, verify=False) as client:
            assert (await client.get("/ready")).status_code == 503
            body = {"model": "m", "messages": [USER]}
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 503
            sock.listen(16)
            backend = await parts.start(parts.backend_server(FakeBackend(num_blocks=77)), sock)
            await eventually(lambda: gateway.control.fleet.num_blocks == 77)
            assert (await client.get("/ready")).status_code == 200
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
        await parts.stop(server)
        await parts.stop(backend)

    asyncio.run(story())


def test_sessions_are_spread_and_their_ends_make_room():
    """By how many have their home where; one that ended or moved counts there no more."""
    router = StickyLeastLoaded()
    replicas = [SimpleNamespace(num_waiting=0, num_running=0) for _ in range(2)]

    def route(session):
        return router.route(SimpleNamespace(session=session), replicas, 0.0)

    assert [route(session) for session in range(4)] == [0, 1, 0, 1]
    assert route(2) == 0, "it stays"
    for session in (0, 2):
        router.on_event(Event(0.0, Kind.SESSION_END, session, -1, -1, (0,)))
    assert [route(session) for session in (4, 5)] == [0, 0]
    router.bind(1, 0)
    assert route(6) == 1

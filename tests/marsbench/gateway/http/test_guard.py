"""What every request has to pass: a token, a size, and the right to a session."""

from __future__ import annotations

import asyncio

import pytest

from marsbench.gateway.backends.fake import FakeAnswer

USER = {"role": "user", "content": "go"}
ONE = {"authorization": "Bearer first-token"}
TWO = {"authorization": "Bearer second-token"}


def test_each_of_several_tokens_is_accepted(any_rig):
    """A token file may hold a token for each tenant: all of them pass, no other does."""

    async def story():
        async with any_rig(tokens=("first-token", "second-token")) as r:
            assert (await r.chat([USER], headers=ONE)).status_code == 200
            assert (await r.chat([USER], headers=TWO)).status_code == 200
            third = {"authorization": "Bearer third-token"}
            assert (await r.chat([USER], headers=third)).status_code == 401

    asyncio.run(story())


def test_another_clients_session_cannot_be_ended_or_given_tools(any_rig):
    """A session belongs to the key that began it: to another key it does not exist (404)."""

    async def story():
        async with any_rig() as r:
            await r.chat([USER], session="mine", headers=ONE)
            call = {"session_id": "mine", "name": "bash"}
            for path, body in (("/v1/sessions/mine/end", {}), ("/v1/tools/acquire", call)):
                answer = await r.client.post(path, json=body, headers=TWO)
                assert answer.status_code == 404
                assert answer.json()["error"]["code"] == "no_session"
            assert (await r.client.post("/v1/sessions/mine/end", headers=ONE)).status_code == 200

    asyncio.run(story())


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/tools/acquire"])
def test_a_chunked_body_that_never_says_its_length_is_refused_at_the_limit(any_rig, path):
    """Without a content-length the bytes are counted as they come: 413 beyond body_bytes."""

    async def chunks():
        for _ in range(40):
            yield b" " * 1024

    async def story():
        async with any_rig(limits={"body_bytes": 16 << 10}) as r:
            answer = await r.client.post(path, content=chunks())
            assert answer.request.headers.get("content-length") is None
            assert answer.status_code == 413
            assert r.backends[0].bodies == []

    asyncio.run(story())


@pytest.mark.parametrize("stream", [True, False])
def test_requests_cut_off_at_the_end_are_answered_and_nothing_is_logged(
    any_rig, eventually, stream, caplog
):
    """The server cancels what has not ended when it stops: a stream ends with an error event, a
    whole reply is a 503, and no traceback of a cancellation is logged."""

    def slow(_number, _body):
        return FakeAnswer(fault="stall" if stream else "hang")

    async def story():
        async with any_rig(slow) as r:
            turn = asyncio.create_task(r.chat([USER], stream=stream))
            await eventually(lambda: r.backends[0].running == 1)
            if stream:
                await eventually(
                    lambda: any(e.client.started for e in r.front.proxy.in_flight.values())
                )
            for task in r.server.server_state.tasks:
                task.cancel()
            return await turn

    answer = asyncio.run(story())
    assert "shutting down" in answer.text
    assert answer.status_code == (200 if stream else 503)
    assert "Cancelled" not in caplog.text


def test_bodies_of_all_requests_share_one_budget(any_rig, eventually):
    """A body beyond what is left for all of them is refused (503), whoever sent it; when the others
    are over there is room again."""

    async def story():
        limits = {"body_bytes": 64 << 10, "all_body_bytes": 100 << 10}
        async with any_rig(lambda _n, _b: FakeAnswer(ttft_s=0.5), limits=limits) as r:
            large = [{"role": "user", "content": "a" * (60 << 10)}]
            first = asyncio.create_task(r.chat(large))
            await eventually(lambda: r.gateway.bodies.used > 60 << 10)
            late = await r.chat(large)
            assert (late.status_code, late.json()["error"]["code"]) == (503, "busy")
            assert (await r.chat([USER])).status_code == 200
            assert (await first).status_code == 200
            await eventually(lambda: r.gateway.bodies.used == 0)

    asyncio.run(story())


def test_a_client_has_so_many_sessions_and_no_more(any_rig):
    """The third session of a client with two is a 429; ending one makes room; another client has
    places of its own."""

    async def story():
        async with any_rig(limits={"sessions": 2}) as r:
            for name, status in (("a", 200), ("b", 200), ("c", 429), ("a", 200)):
                answer = await r.chat([USER], session=name, headers=ONE)
                assert answer.status_code == status
            assert (await r.chat([USER], session="c", headers=TWO)).status_code == 200
            await r.client.post("/v1/sessions/a/end", headers=ONE)
            assert (await r.chat([USER], session="c", headers=ONE)).status_code == 200

    asyncio.run(story())


@pytest.mark.parametrize(
    ("body", "headers", "status", "what"),
    [
        (b"\x1f\x8b\x08", {"content-encoding": "gzip"}, 415, "send it plain"),
        (b'{"messages":[{"role":"user","content":"\\ud83d"}]}', {}, 400, "half of a character"),
    ],
)
def test_bodies_that_cannot_be_read_get_a_true_message(any_rig, body, headers, status, what):
    """A compressed body and a lone surrogate are not called bad JSON."""

    async def story():
        async with any_rig() as r:
            answer = await r.client.post("/v1/chat/completions", content=body, headers=headers)
            assert answer.status_code == status
            assert what in answer.json()["error"]["message"]

    asyncio.run(story())


def test_operators_list_and_end_sessions_and_clients_cannot(any_rig, eventually):
    """With an admin token: all sessions, without text or keys, and the end of one whose turn is in
    flight. A client's token gets 403, none at all 401."""
    admin = {"authorization": "Bearer admin-token"}

    async def story():
        tokens = {"tokens": ("first-token team one",), "admin_tokens": ("admin-token",)}
        async with any_rig(lambda _n, _b: FakeAnswer(fault="hang"), **tokens) as r:
            turn = asyncio.create_task(r.chat([USER], session="a", headers=ONE))
            await eventually(lambda: r.backends[0].running == 1)
            assert (await r.client.get("/v1/admin/sessions")).status_code == 401
            assert (await r.client.get("/v1/admin/sessions", headers=ONE)).status_code == 403
            assert (await r.chat([USER], headers=admin)).status_code == 401
            listed = (await r.client.get("/v1/admin/sessions", headers=admin)).json()
            assert listed["total"] == 1
            found = listed["sessions"][0]
            assert (found["session_id"], found["tenant"], found["phase"]) == (
                "a", "team one", "engine",
            )  # fmt: skip
            assert "first-token" not in str(listed)
            path = f"/v1/admin/sessions/{found['number']}/end"
            assert (await r.client.post(path, headers=admin)).json()["ended"] is True
            assert (await turn).status_code == 503
            assert r.gateway.control.table.sessions == {}
            assert (await r.client.post(path, headers=admin)).status_code == 404

    asyncio.run(story())


def test_web_pages_may_call_only_where_asked(any_rig):
    """Without cors_origins no answer carries CORS headers; with one, that origin's preflight does."""
    preflight = {"origin": "https://a.example", "access-control-request-method": "POST"}

    async def asked(**settings):
        async with any_rig(**settings) as r:
            return (await r.client.options("/v1/chat/completions", headers=preflight)).headers

    allow = "access-control-allow-origin"
    assert allow not in asyncio.run(asked())
    found = asyncio.run(asked(cors_origins=("https://a.example",)))
    assert found[allow] == "https://a.example"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models/fake"),
        ("GET", "/s/abc/v1/models"),
        ("POST", "/v1/embeddings"),
        ("POST", "/tokenize"),
        ("POST", "/v1/messages/count_tokens"),
    ],
)
def test_requests_without_a_session_pass_through(any_rig, method, path):
    """Models, embeddings and token counts go to a backend as they are; no session begins."""

    async def story():
        async with any_rig() as r:
            body = {"model": "fake", "input": "x", "messages": []} if method == "POST" else None
            answer = await r.client.request(method, path, json=body)
            assert answer.status_code == 200
            assert answer.json()["object"]
            assert r.gateway.control.table.sessions == {}

    asyncio.run(story())

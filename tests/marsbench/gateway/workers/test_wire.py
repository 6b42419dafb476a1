"""What workers and the main process tell each other arrives as it was, whatever its pieces."""

from __future__ import annotations

import asyncio
import socket

import msgspec
import pytest

from marsbench.gateway.control.desk import Carried, TurnAsk
from marsbench.gateway.messages.identity import ClientIdentity
from marsbench.gateway.messages.prompt import read_prompt
from marsbench.gateway.messages.reply import CallFacts, ReplyFacts
from marsbench.gateway.workers import wire
from marsbench.gateway.workers.channel import WorkerChannel
from marsbench.gateway.workers.shared import SharedCounts

USER = {"role": "user", "content": "go"}
BODIES = {
    "chat": {"model": "m", "stream": True, "tools": [{"type": "function"}], "messages": [USER] * 3},
    "completions": {"model": "m", "prompt": "lorem ipsum " * 200},
    "responses": {"input": "hi", "instructions": "be short", "previous_response_id": "r1"},
    "messages": {"model": "m", "system": "be short", "messages": [USER]},
}
FACTS = ReplyFacts("r", 10, 2, 4, "stop", (CallFacts("c1", "bash", "shell_read", b"d"),), b"t", 5)
MESSAGES = [
    wire.Ready(),
    wire.Ended(7, Carried(200, finished=True, reply=FACTS)),
    wire.Counted("requests", ("chat", "200", "default")),
    wire.Call(1, "GET", "/metrics", b"/metrics", b"", [(b"a", b"b")], None, {}, b"x" * 100_000),
    wire.First(3),
]


@pytest.mark.parametrize("size", [1, 3, 4096, 1 << 20])
def test_messages_arrive_whole_and_in_order_whatever_the_pieces(size):
    """The bytes of five messages, one of them of 100 kB, are read in pieces of so many."""

    async def story():
        heard = []
        ours, theirs = socket.socketpair()
        sender = WorkerChannel(wire.FromMain, print, lambda: None)
        await sender.open(ours)
        for message in MESSAGES:
            sender.send(message)
        sender.close()
        theirs.setblocking(False)
        data = b""
        while part := await asyncio.get_running_loop().sock_recv(theirs, 1 << 20):
            data += part
        theirs.close()
        receiver = WorkerChannel(wire.FromWorker, heard.append, lambda: None)
        if size == 1:
            data = data[:200]  # the first three, byte by byte
        for start in range(0, len(data), size):
            receiver.data_received(data[start : start + size])
        return heard

    heard = asyncio.run(story())
    assert heard == (MESSAGES[:3] if size == 1 else MESSAGES)


def test_the_other_end_that_closes_is_noticed_and_told_nothing_more():
    """``lost`` is called once; what is sent afterwards goes nowhere and raises nothing."""

    async def story():
        lost = asyncio.Event()
        ours, theirs = socket.socketpair()
        channel = WorkerChannel(wire.FromWorker, print, lost.set)
        await channel.open(ours)
        theirs.close()
        await lost.wait()
        channel.send(wire.Ready())

    asyncio.run(story())


@pytest.mark.parametrize("api", BODIES)
def test_a_told_prompt_is_the_prompt(api):
    """Its digests cross the wire, its text is read from the body: both are those of the request."""
    body = BODIES[api]
    prompt = read_prompt(api, body)
    ask = TurnAsk(
        api, msgspec.json.encode(body), "key:1", "t", ClientIdentity("a", "path"), prompt,
        [("user-agent", "x")],
    )  # fmt: skip
    packed = msgspec.msgpack.encode(wire.open_turn(5, ask))
    told = msgspec.msgpack.decode(packed, type=wire.TurnOpens).told()
    assert told.prompt == prompt, "all that is compared: digests, lengths, model"
    assert told.prompt.read() == prompt.read()
    assert (told.client, told.tenant, told.identity, told.headers) == (
        ask.client, ask.tenant, ask.identity, ask.headers,
    )  # fmt: skip


def test_a_text_prompt_that_goes_on_inside_a_piece_is_known_from_what_is_told():
    """Text prompts end within a piece of 1,024 bytes: the longer one's text decides."""
    first = read_prompt("completions", {"prompt": "ab" * 700})
    later = {"prompt": "ab" * 700 + "more"}
    raw = msgspec.json.encode(later)
    ask = TurnAsk(
        "completions",
        raw,
        "",
        "",
        ClientIdentity("", "prompt"),
        read_prompt("completions", later),
        [],
    )
    told = wire.open_turn(1, ask).told().prompt
    assert told.extends(first.mark())
    assert not told.extends(read_prompt("completions", {"prompt": "ab" * 699 + "ba"}).mark())


def test_counts_are_summed_over_processes_and_a_dead_ones_forgotten():
    """Column 1 counts 5 and column 2 counts 7 through maps of their own: 12 for everybody, and 7 when
    the first has died."""
    here = SharedCounts.create(3)
    there = SharedCounts(here.descriptor, 3)
    first, second = here.row("bodies", 1), there.row("bodies", 2)
    first.own += 5
    second.own += 7
    here.row("connections", 1).own += 1
    assert (first.total, second.total, there.row("bodies", 0).own) == (12, 12, 0)
    here.clear(1)
    assert (second.total, second.own, here.row("connections", 0).total) == (7, 7, 0)
    here.close()

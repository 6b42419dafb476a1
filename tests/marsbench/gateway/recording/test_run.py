"""Served traffic as a run folder: whole sessions, in parts, that the report reads like any other."""

from __future__ import annotations

import asyncio
import signal

import httpx
import pytest

from marsbench.events import Kind, Status
from marsbench.gateway.backends.fake import FakeAnswer
from marsbench.gateway.recording.run import GatewayLoad, RunPart, RunRecorder
from marsbench.records import EventLog
from marsbench.report.write import write_report
from marsbench.runfolder import read_summary, read_table
from marsbench.tables import CellKey

USER = {"role": "user", "content": "go"}
BASH = (("c1", "bash", '{"command":"make"}'),)
KEY = CellKey("served", "vllm", "vllm", "p", None, None, 0, 0)
S = 10**12


def made(tmp_path, **more) -> RunRecorder:
    return RunRecorder(tmp_path / "run", KEY, settings={}, max_bytes=1 << 20, **more)


class Story:
    """Sessions as a gateway's log has them."""

    def __init__(self):
        self.log = EventLog()

    def session(self, index, at_s, *, turns=1, ended_s=None, calls=0, name="bash", parent=-1):
        """Turns of a second each, with a tool call of a second between them."""
        log = self.log
        log.session_ids += [""] * (index + 1 - len(log.session_ids))
        log.session_ids[index] = f"s{index}"
        code, kind = log.intern(name), log.intern("test")
        log.append(at_s * S, Kind.SESSION_ARRIVE, index, -1, -1, 100, parent, 0)
        for turn in range(turns):
            start = (at_s + 2 * turn) * S
            log.append(start, Kind.TURN_READY, index, turn, -1, 100)
            log.append(start, Kind.GPU_SUBMIT, index, turn, -1, 100, 7)
            log.append(start + S // 2, Kind.GPU_SCHED_FIRST, index, turn, -1, 64, 36)
            log.append(start + S // 2, Kind.GPU_FIRST_TOKEN, index, turn)
            asked = 1 if turn + 1 < turns else calls
            log.append(start + S, Kind.GPU_END, index, turn, -1, 10, 64, 36, 0, asked, 0)
            if asked:
                log.append(start + S, Kind.TOOL_ENQUEUED, index, turn, 0, code, kind)
                log.append(start + S, Kind.TOOL_START, index, turn, 0, code, kind)
            if turn + 1 < turns:
                log.append(start + 2 * S, Kind.TOOL_END, index, turn, 0, code, kind)
        if ended_s is not None:
            log.append(ended_s * S, Kind.SESSION_END, index, -1, -1, int(Status.OK))

    def take(self, run):
        run.take(self.log.to_numpy().copy(), self.log)
        return run


def sessions_of(run, part: RunPart):
    run.write(part)
    return read_table(run.path, "sessions").set_index("session_id")


def test_a_session_ends_with_its_last_token(tmp_path):
    """Three turns of 1 s with two tool calls of 1 s: a latency of 5 s, although its client (or a long
    silence) ended it only 300 s later."""
    story = Story()
    story.session(0, 10, turns=3, ended_s=315)
    run = story.take(made(tmp_path))
    found = sessions_of(run, run.last(400 * S)).loc["s0"]
    assert (found["status"], found["latency_s"], found["num_turns"]) == ("ok", 5.0, 3)
    assert found["cached_tokens"] == 3 * 64


@pytest.mark.parametrize(
    ("calls", "name", "status"),
    [(0, "", "ok"), (1, "bash", "unfinished"), (1, "finish", "ok")],
)
def test_at_the_end_only_answered_sessions_are_over(tmp_path, calls, name, status):
    """A last reply without tool calls, or with one that says that the task is done, is the end; a
    session whose tools still run has not finished."""
    story = Story()
    story.session(0, 0, turns=2, calls=calls, name=name or "bash")
    run = story.take(made(tmp_path))
    assert sessions_of(run, run.last(60 * S)).loc["s0", "status"] == status


def test_a_sub_agent_is_written_with_its_parent(tmp_path):
    """The child ended before; both are in the part in which the parent ends, numbered anew."""
    story = Story()
    story.session(0, 0, ended_s=1)
    story.session(1, 2, turns=4, parent=-1)
    story.session(2, 5, ended_s=6, parent=1)
    run = made(tmp_path, part_s=0.5)
    story.take(run)
    first = run.due(7 * S)
    assert [name for name, _ in first.sessions] == ["s0"]
    found = sessions_of(run, run.last(20 * S))
    assert found["parent"].to_dict() == {"s1": -1, "s2": 0}


def test_the_folder_stays_within_its_size_by_losing_its_oldest_parts(tmp_path):
    """Ten parts into a folder with room for a few: the newest stay, readable, and it is counted."""
    run = RunRecorder(tmp_path / "run", KEY, settings={}, max_bytes=150_000, part_s=1.0)
    for number in range(10):
        story = Story()
        story.session(number, 10 * number, ended_s=10 * number + 2)
        part = story.take(run).due((10 * number + 5) * S)
        run.write(part)
    kept = [cell["seed"] for cell in read_summary(run.path)["cells"]]
    assert 1 < len(kept) < 10
    assert kept == list(range(10))[-len(kept) :]
    assert run.rotated == 10 - len(kept)


def test_memory_is_bounded_by_not_recording_newcomers(tmp_path):
    """With too many events of unfinished sessions in memory a new session is left out, and counted;
    those that were begun are written whole."""
    story = Story()
    story.session(0, 0, turns=5)
    run = story.take(made(tmp_path, max_open_events=20))
    late = Story()
    late.session(1, 20, ended_s=22)
    late.take(run)
    assert run.dropped == 1
    assert list(sessions_of(run, run.last(30 * S)).index) == ["s0"]


def test_a_session_that_went_on_after_a_silence_has_a_row_of_its_own(tmp_path):
    """Two sessions of one id: ids of a cell are distinct."""
    story = Story()
    story.session(0, 0, ended_s=2)
    story.session(1, 5, ended_s=7)
    story.log.session_ids[1] = "s0"
    run = story.take(made(tmp_path))
    assert list(sessions_of(run, run.last(9 * S)).index) == ["s0", "s0~2"]


def test_samples_of_memory_and_tools_are_kept(tmp_path):
    """100 of 400 blocks held and 3 calls on 2 cores for 10 s: a quarter of the memory, all cores."""
    story = Story()
    story.session(0, 0, turns=5, ended_s=10)
    run = RunRecorder(
        tmp_path / "run",
        CellKey("served", "vllm", "vllm", "p", None, None, 0, 2),
        settings={},
        max_bytes=1 << 20,
    )
    story.take(run)
    for second in range(11):
        run.load(second * S, GatewayLoad(300, 400, 1, 3, 0, 5), 2)
    run.write(run.last(10 * S))
    metrics = read_summary(run.path)["cells"][0]["metrics"]
    assert metrics["kv_utilisation"] == pytest.approx(0.25)
    assert metrics["tool_utilisation"] == pytest.approx(
        2 * 10 / (2 * 9)
    )  # nine seconds of makespan
    assert metrics["preemptions"] == 0


@pytest.fixture
def serving(slow_backend, process_of, tmp_path):
    """``marsbench serve --out`` as a process in front of a fake backend."""
    with process_of("serve", "-u", slow_backend, "--out", str(tmp_path / "run")) as found:
        yield *found, tmp_path / "run"


def test_served_traffic_can_be_reported_after_sigterm(serving):
    """An OpenAI client in a loop, two sessions of three turns, SIGTERM: the run folder is complete,
    and its report shows sessions, latencies and hits."""
    url, gateway, path = serving
    for name in ("a", "b"):
        for turn in range(3):
            body = {"model": "m", "messages": [USER] * (2 * turn + 1), "user": name, "stream": True}
            answer = httpx.post(
                f"{url}/v1/chat/completions",
                json=body,
                headers={"x-session-id": name},
                timeout=20,
                trust_env=False,
            )
            assert answer.text.endswith("data: [DONE]\n\n")
    gateway.send_signal(signal.SIGTERM)
    assert gateway.wait(60) == 0
    assert f"2 sessions in 1 parts; see `marsbench report {path}`" in gateway.stderr.read()
    cell = read_summary(path)["cells"][0]
    assert (cell["sessions"]["arrived"], cell["sessions"]["completed"]) == (2, 2)
    assert cell["metrics"]["session_latency_s"]["mean"] > 1.5, "three turns of 0.6 s"
    assert not (path / "cells").exists()
    page = write_report([path]).html.read_text()
    assert "served" in page
    assert list((path / "figures").glob("latency_cdf*"))


def test_the_run_folder_holds_what_the_gateway_saw(rig, tmp_path):
    """Sessions, turns and tool calls of a small story, with the tool call's own times."""

    async def story():
        plans = [FakeAnswer(calls=BASH, cached_tokens=0), FakeAnswer(cached_tokens=2)]
        async with rig(lambda number, _b: plans[number], out=tmp_path / "run") as r:
            await r.chat([USER], session="a")
            lease = await r.client.post(
                "/v1/tools/acquire", json={"session_id": "a", "name": "bash"}
            )
            await r.client.post("/v1/tools/release", json={"lease": lease.json()["lease"]})
            await r.chat([USER, USER], session="a")
            await r.client.post("/v1/sessions/a/end")

    asyncio.run(story())
    turns = read_table(tmp_path / "run", "turns")
    assert turns["turn_index"].tolist() == [0, 1]
    assert turns["num_tools"].tolist() == [1, 0]
    assert (turns["tool_wait_s"] > 0).tolist() == [True, False]
    session = read_table(tmp_path / "run", "sessions").iloc[0]
    assert (session["session_id"], session["status"]) == ("a", "ok")

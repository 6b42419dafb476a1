"""A request finds its session: by what the client says, else by the prompt it extends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsbench.core import Phase
from marsbench.gateway.control.sessions import SessionTable
from marsbench.gateway.messages.identity import identify
from marsbench.gateway.messages.prompt import Prompt, read_prompt, reply_print
from marsbench.gateway.problems import ApiProblem

SYSTEM = {"role": "system", "content": "You fix bugs."}
TASK = {"role": "user", "content": "Fix issue 1."}


def prompt_of(*messages, **body) -> Prompt:
    return read_prompt("chat", {"model": "m", "messages": list(messages), **body})


def said(text, *calls):
    return {
        "role": "assistant",
        "content": text,
        "tool_calls": [
            {"id": i, "type": "function", "function": {"name": n, "arguments": a}}
            for i, n, a in calls
        ],
    }


def result(call_id, text):
    return {"role": "tool", "tool_call_id": call_id, "content": text}


class Desk:
    """A session table whose turns end as soon as they are answered."""

    def __init__(self):
        self.table = SessionTable()
        self.now = 0

    def ask(self, prompt, *, scope="c", answer=None, key="", headers=None, body=None, finish=True):
        self.now += 1
        identity = identify(key, headers or {}, body or {}, "")
        session, new = self.table.resolve(scope, identity, prompt, self.now)
        session.state.phase = Phase.ENGINE
        self.table.remember(session, prompt)
        if finish:
            self.finish(session, answer)
        return session, new

    def finish(self, session, answer, calls=()):
        session.state.phase = Phase.TOOL
        session.calls = list(calls)
        self.table.replied(session, reply_print(answer) if answer else None, "")


@pytest.mark.parametrize(
    ("path", "headers", "body", "key", "source"),
    [
        ("p1", {"x-session-id": "h"}, {"session_id": "b"}, "p1", "path"),
        ("", {"x-session-id": "h"}, {"session_id": "b"}, "b", "session_id"),
        ("", {"x-session-id": "h"}, {"prompt_cache_key": "k"}, "h", "x-session-id"),
        ("", {"session_id": "codex"}, {}, "codex", "session_id"),
        ("", {"x-claude-code-session-id": "cc"}, {}, "cc", "x-claude-code-session-id"),
        ("", {"x-dynamo-session-id": "d"}, {}, "d", "x-dynamo-session-id"),
        ("", {"x-session-affinity": "a"}, {}, "a", "x-session-affinity"),
        ("", {"x-opencode-session": "o"}, {}, "o", "x-opencode-session"),
        ("", {"x-litellm-session-id": "l"}, {}, "l", "x-litellm-session-id"),
        ("", {"x-litellm-trace-id": "t"}, {}, "t", "x-litellm-trace-id"),
        (
            "",
            {"x-litellm-trace-id": "t", "x-litellm-session-id": "l"},
            {},
            "l",
            "x-litellm-session-id",
        ),
        ("", {"x-smg-routing-key": "r"}, {}, "r", "x-smg-routing-key"),
        ("", {}, {"nvext": {"agent_hints": {"session_id": "n"}}}, "n", "nvext.agent_hints"),
        ("", {}, {"nvext": "no object"}, "", "prompt"),
        ("", {}, {"prompt_cache_key": "k"}, "k", "prompt_cache_key"),
        ("", {}, {}, "", "prompt"),
    ],
)
def test_identity_takes_the_most_explicit_name(path, headers, body, key, source):
    """Path, then body, then agent headers, then the cache key, then nothing."""
    found = identify(path, headers, body, "api-key")
    assert (found.key, found.source) == (key, source)


@pytest.mark.parametrize(
    "header", ["x-session-end", "x-marsbench-session-end", "x-dynamo-session-final"]
)
def test_final_markers_end_a_session(header):
    """Each agent family has its own header for the last turn; "0" is none."""
    assert identify("", {header: "true"}, {}, "").is_last
    assert not identify("", {header: "0"}, {}, "").is_last


def test_users_of_one_key_are_told_apart():
    """The user field and the fairness id say for whom a client asks: what one began is never
    continued by another, although key and prompt are the same."""
    assert identify("", {}, {"user": "u"}, "").group == "u"
    assert identify("", {"x-gateway-inference-fairness-id": "f"}, {"user": "u"}, "").group == "f"
    desk = Desk()
    first, _ = desk.ask(prompt_of(TASK), answer=said("ok"), body={"user": "one"})
    longer = prompt_of(TASK, said("ok"), TASK)
    assert desk.ask(longer, body={"user": "two"})[1]
    assert desk.ask(longer, body={"user": "one"})[0] is first


def test_ids_are_never_given_twice_whoever_asks():
    """Two clients call their sessions t, and one of them calls another t~2: three different ids,
    although each client hears its own name."""
    desk = Desk()
    made = [
        desk.ask(prompt_of(TASK), key="t", scope="one")[0],
        desk.ask(prompt_of(TASK), key="t", scope="two")[0],
        desk.ask(prompt_of(TASK), key="t~2", scope="two")[0],
    ]
    assert len({session.session_id for session in made}) == 3
    assert [session.told_id for session in made] == ["t", "t", "t~2"]
    assert desk.table.find("two", "t") is made[1]
    assert desk.table.find("two", "t~2") is made[2]


def test_api_key_names_a_session_only_if_asked():
    """Keys are shared by default; with session_per_key they are sessions, and never shown."""
    assert identify("", {}, {}, "sk-1").key == ""
    found = [
        identify("", {}, {}, key, session_per_key=True).key for key in ("sk-1", "sk-1", "sk-2")
    ]
    assert found[0] == found[1] != found[2]
    assert "sk-" not in "".join(found)


@pytest.mark.parametrize("bad", ["x" * 257, "a\nb"])
def test_session_ids_that_could_break_logs_are_refused(bad):
    """Too long, or control characters."""
    with pytest.raises(ApiProblem, match="session id"):
        identify("", {"x-session-id": bad}, {}, "")


def test_black_box_client_continues_the_session_it_extends():
    """[S, T] then [S, T, reply, result] is one session; another task is another one."""
    desk = Desk()
    first, new = desk.ask(prompt_of(SYSTEM, TASK), answer=said("ok", ("c1", "bash", "{}")))
    assert new
    other, new = desk.ask(prompt_of(SYSTEM, {"role": "user", "content": "Fix issue 2."}))
    assert new
    assert other is not first
    longer = prompt_of(SYSTEM, TASK, said("ok", ("c1", "bash", "{}")), result("c1", "done"))
    again, new = desk.ask(longer)
    assert not new
    assert again is first


def test_equal_first_prompts_are_told_apart_by_their_replies():
    """Five samples of one task: each continuation carries the call id only its session got."""
    desk = Desk()
    made = [
        desk.ask(prompt_of(SYSTEM, TASK), answer=said("", (f"call-{k}", "bash", "{}")))[0]
        for k in range(5)
    ]
    assert len({s.session for s in made}) == 5
    for k in (3, 0, 4):
        longer = prompt_of(SYSTEM, TASK, said("", (f"call-{k}", "bash", "{}")), result("x", "r"))
        assert desk.ask(longer)[0] is made[k]


def test_other_clients_sessions_are_never_continued():
    """The same messages from another key are another session."""
    desk = Desk()
    first, _ = desk.ask(prompt_of(TASK), answer=said("ok"))
    second, new = desk.ask(prompt_of(TASK, said("ok"), TASK), scope="other")
    assert new
    assert second is not first


def test_cache_marks_and_content_shape_do_not_hide_a_message():
    """A text, the same text as one part, and with a cache mark are the same message."""
    desk = Desk()
    first, _ = desk.ask(prompt_of(SYSTEM, TASK), answer=said("ok"))
    part = {"type": "text", "text": TASK["content"], "cache_control": {"type": "ephemeral"}}
    shaped = {"role": "user", "content": [part]}
    assert desk.ask(prompt_of(SYSTEM, shaped, said("ok"), TASK))[0] is first


def test_a_failed_turn_repeated_is_the_same_session():
    """Without a reply, the same prompt again is a retry; with one, it is a new session."""
    desk = Desk()
    first, _ = desk.ask(prompt_of(SYSTEM, TASK), answer=None)
    retry, new = desk.ask(prompt_of(SYSTEM, TASK), answer=said("ok"))
    assert retry is first
    assert not new
    assert desk.ask(prompt_of(SYSTEM, TASK))[1]


def test_request_beside_the_current_turn_is_a_sub_agent():
    """A named session's second request in flight becomes a child that its parent waits for."""
    desk = Desk()
    top, _ = desk.ask(prompt_of(SYSTEM, TASK), key="t", finish=False)
    child, new = desk.ask(prompt_of(TASK), key="t", answer=said("found"))
    assert new
    assert child.parent is top
    assert child.is_child
    assert child.session_id.startswith("t/0")
    again, new = desk.ask(prompt_of(TASK, said("found"), TASK), key="t")
    assert again is child
    assert not new


def test_other_system_prompt_while_tools_run_is_a_sub_agent_but_compaction_is_not():
    """Same system messages, rewritten history: the session itself goes on."""
    from marsbench.gateway.control.sessions import OpenCall

    desk = Desk()
    top, _ = desk.ask(prompt_of(SYSTEM, TASK), key="t", finish=False)
    desk.finish(top, said("", ("c", "task", "{}")), [OpenCall(0, "c", "task", "subagent")])
    explorer = {"role": "system", "content": "You explore code."}
    child, _ = desk.ask(prompt_of(explorer, TASK), key="t")
    assert child.parent is top
    summary = {"role": "user", "content": "Summary so far: nothing."}
    assert desk.ask(prompt_of(SYSTEM, summary), key="t")[0] is top


def test_ended_sessions_are_forgotten_and_their_ids_never_given_twice():
    """After its end a name means a new session, with an id of its own for the trace."""
    desk = Desk()
    first, _ = desk.ask(prompt_of(TASK), key="t", answer=said("ok"))
    desk.table.remove(first)
    assert desk.table.find("c", "t") is None
    second, new = desk.ask(prompt_of(TASK), key="t")
    assert new
    assert second.session_id == "t~2"
    black_box, new = desk.ask(prompt_of(TASK, said("ok"), TASK))
    assert new, "the ended session's prompt is not in the index any more"
    assert black_box.session not in {first.session, second.session}


def test_previous_response_id_continues_its_session():
    """The Responses API names the reply it goes on from."""
    desk = Desk()
    session, _ = desk.ask(read_prompt("responses", {"input": "hi"}))
    desk.table.replied(session, None, "resp-1")
    body = {"input": "and now?", "previous_response_id": "resp-1"}
    assert desk.ask(read_prompt("responses", body))[0] is session


@given(
    start=st.text(min_size=1, max_size=3000),
    more=st.text(min_size=1, max_size=200),
    other=st.text(min_size=1, max_size=3000),
)
def test_text_prompts_extend_exactly_their_prefixes(start, more, other):
    """``extends`` is true for start + more, and otherwise only where a prefix really is one."""
    mark = read_prompt("completions", {"prompt": start}).mark()
    assert read_prompt("completions", {"prompt": start + more}).extends(mark)
    assert not read_prompt("completions", {"prompt": start}).extends(mark)
    longer = other.encode("utf-8", "surrogatepass")
    first = start.encode("utf-8", "surrogatepass")
    expected = longer.startswith(first) and len(longer) > len(first)
    assert read_prompt("completions", {"prompt": other}).extends(mark) == expected


@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=600), st.integers(0, 2**31))
def test_token_prompts_are_counted_and_extended_exactly(ids, extra):
    """Token ids need no estimate."""
    mark = read_prompt("completions", {"prompt": ids}).mark()
    longer = read_prompt("completions", {"prompt": [*ids, extra]})
    assert longer.tokens == len(ids) + 1
    assert longer.extends(mark)
    changed = [ids[0] ^ 1, *ids[1:], extra]
    assert not read_prompt("completions", {"prompt": changed}).extends(mark)

"""Small files of every trace format, written for the tests."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

Write = Callable[[Path], Path]


def jsonl(rows: Iterable[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def clock(second: float) -> str:
    return f"2026-01-01T00:{int(second) // 60:02d}:{second % 60:06.3f}Z"


def tracelab_row(session: str, index: int, prompt: int, output: int, **more: Any) -> dict[str, Any]:
    return {
        "provider": "claude",
        "session_id": session,
        "round_index": index,
        "model": "m",
        "input_tokens_total": prompt,
        "prefix_tokens": 0,
        "output_tokens": output,
        "timing_events": [],
        "tools": [],
        **more,
    }


def weka_trace(name: str, requests: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "id": name,
        "models": ["m"],
        "block_size": 64,
        "hash_id_scope": "local",
        "tool_tokens": 100,
        "system_tokens": 28,
        "requests": requests,
        **more,
    }


def weka_request(prompt: int, output: int, ids: list[int], **more: Any) -> dict[str, Any]:
    return {
        "t": 0.0,
        "type": "n",
        "model": "m",
        "in": prompt,
        "out": output,
        "hash_ids": ids,
        "input_types": ["tool_result"],
        "api_time": 1.0,
        "think_time": 3.0,
        **more,
    }


def swe_agent_step(action: str, observation: str, **more: Any) -> dict[str, Any]:
    return {
        "action": action,
        "observation": observation,
        "response": f"run {action}",
        "thought": "",
        "state": "{}",
        **more,
    }


def swe_agent_history(steps: int, **fields: Any) -> list[dict[str, Any]]:
    history = [
        {"role": "system", "content": "s" * 340, "agent": "a", **fields},
        {"role": "user", "content": "t" * 680, "agent": "a", **fields},
    ]
    for index in range(steps):
        history.append({"role": "assistant", "content": f"step {index}", "agent": "a", **fields})
        history.append({"role": "user", "content": f"{index}" * 3400, "agent": "a", **fields})
    return history


def openhands_v0_row() -> dict[str, Any]:
    def action(number: int, second: float, command: str, response: str) -> dict[str, Any]:
        return {
            "id": number,
            "timestamp": f"2026-01-01T00:00:{second:09.6f}",
            "source": "agent",
            "action": "run",
            "args": {"command": command, "thought": ""},
            "tool_call_metadata": {
                "function_name": "execute_bash",
                "model_response": {"id": response, "usage": {}},
            },
        }

    def result(number: int, second: float, cause: int, success: bool) -> dict[str, Any]:
        return {
            "id": number,
            "timestamp": f"2026-01-01T00:00:{second:09.6f}",
            "source": "agent",
            "observation": "run",
            "cause": cause,
            "content": "x" * 34,
            "success": success,
        }

    system = {"content": "s" * 600, "tools": [{"name": "execute_bash"}]}
    opening = [
        {
            "id": 0,
            "timestamp": "2026-01-01T00:00:00",
            "source": "agent",
            "action": "system",
            "args": system,
        },
        {
            "id": 1,
            "timestamp": "2026-01-01T00:00:00",
            "source": "user",
            "action": "message",
            "args": {"content": "u" * 300},
        },
    ]
    history = [
        *opening,
        action(2, 3.0, "pytest -q", "r1"),
        result(3, 5.5, 2, False),
        action(4, 9.0, "git diff", "r2"),
        result(5, 9.5, 4, True),
        {**action(6, 12.0, "", "r3"), "action": "finish"},
    ]
    usage = [(1000, 20), (1100, 30), (1200, 10)]
    metrics = {
        "token_usages": [
            {"model": "m", "prompt_tokens": p, "completion_tokens": o, "response_id": f"r{i}"}
            for i, (p, o) in enumerate(usage, start=1)
        ],
        "response_latencies": [
            {"model": "m", "latency": latency, "response_id": f"r{i}"}
            for i, latency in enumerate((2.0, 3.0, 2.0), start=1)
        ],
    }
    return {
        "instance_id": "org__repo-1",
        "test_result": {"git_patch": ""},
        "instruction": "i",
        "metadata": {
            "agent_class": "CodeActAgent",
            "llm_config": {"model": "m", "api_key": "secret"},
        },
        "history": history,
        "metrics": metrics,
    }


def openhands_v1_events() -> list[dict[str, Any]]:
    def event(number: int, second: float, kind: str, source: str, **more: Any) -> dict[str, Any]:
        time = f"2026-01-01T00:00:{second:09.6f}"
        return {"id": f"e{number}", "timestamp": time, "kind": kind, "source": source, **more}

    def action(
        number: int, second: float, response: str, call: str, command: str
    ) -> dict[str, Any]:
        arguments = json.dumps({"command": command})
        return event(
            number,
            second,
            "ActionEvent",
            "agent",
            tool_name="terminal",
            tool_call_id=call,
            llm_response_id=response,
            thought=[],
            tool_call={"id": call, "name": "terminal", "arguments": arguments},
            action={"kind": "TerminalAction", "command": command},
        )

    def result(number: int, second: float, action_id: str, call: str, code: int) -> dict[str, Any]:
        observation = {"content": [{"type": "text", "text": "x" * 34}], "exit_code": code}
        return event(
            number,
            second,
            "ObservationEvent",
            "environment",
            tool_name="terminal",
            tool_call_id=call,
            action_id=action_id,
            observation=observation,
        )

    return [
        event(0, 0.0, "SystemPromptEvent", "agent", system_prompt={"text": "s" * 600}, tools=[]),
        event(1, 0.0, "MessageEvent", "user", llm_message={"role": "user", "content": [{"type": "text", "text": "u" * 200}]}),
        action(2, 2.0, "r1", "c1", "pytest"),
        action(3, 2.0, "r1", "c2", "ls"),
        result(4, 5.0, "e2", "c1", 1),
        result(5, 2.5, "e3", "c2", 0),
        action(6, 8.0, "r2", "c3", "cat a.py"),
        event(7, 8.25, "AgentErrorEvent", "agent", tool_call_id="c3", error="no such tool"),
        event(8, 9.0, "Condensation", "environment", summary="short", llm_response_id="r9"),
        event(9, 10.0, "SomethingNew", "agent"),
        event(10, 12.0, "MessageEvent", "agent", llm_response_id="r3", llm_message={"role": "assistant", "content": "done"}),
    ]  # fmt: skip


OPENHANDS_V1_METRICS = {
    "token_usages": [
        {"prompt_tokens": p, "completion_tokens": o, "response_id": r}
        for p, o, r in ((800, 50, "r1"), (900, 20, "r2"), (5000, 90, "r9"), (700, 5, "r3"))
    ],
    "response_latencies": [{"latency": 2.0, "response_id": r} for r in ("r1", "r2", "r9", "r3")],
}


def claude_line(kind: str, second: float, content: Any, **more: Any) -> dict[str, Any]:
    message = {"role": kind, "content": content, **more.pop("message", {})}
    return {
        "type": kind,
        "timestamp": clock(second),
        "sessionId": "s1",
        "uuid": f"u{second}",
        "version": "2.0.1",
        "isSidechain": False,
        "message": message,
        **more,
    }


def claude_answer(
    second: float,
    message_id: str,
    content: list[dict[str, Any]],
    prompt: int,
    output: int,
    **more: Any,
) -> dict[str, Any]:
    usage = {"input_tokens": 2, "cache_read_input_tokens": prompt - 2, "output_tokens": output}
    message = {"id": message_id, "model": "claude-x", "usage": usage}
    return claude_line("assistant", second, content, message=message, **more)


def tool_use(call_id: str, name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id, "name": name, "input": arguments}


def tool_result(second: float, call_id: str, text: str, **more: Any) -> dict[str, Any]:
    block = {"type": "tool_result", "tool_use_id": call_id, "content": text, "is_error": False}
    return claude_line("user", second, [block], **more)


def _tracelab(path: Path) -> Path:
    rows = [
        tracelab_row("a", 0, 500, 20),
        tracelab_row("a", 1, 600, 30),
        tracelab_row("b", 0, 700, 9),
    ]
    return _text(path / "rounds.jsonl", jsonl(rows))


def _weka(path: Path) -> Path:
    first = weka_request(640, 10, list(range(10)), input_types=["text"])
    second = weka_request(700, 10, list(range(10)))
    file = path / "trace.json.gz"
    file.write_bytes(gzip.compress(json.dumps(weka_trace("w", [first, second])).encode()))
    return file


def _mooncake(path: Path) -> Path:
    rows = [
        {"timestamp": 0, "input_length": 1100, "output_length": 50, "hash_ids": [0, 1, 2]},
        {"timestamp": 9000, "input_length": 1300, "output_length": 40, "hash_ids": [0, 1, 7]},
    ]
    return _text(path / "requests.jsonl", jsonl(rows))


def _agentic_mooncake(path: Path) -> Path:
    rows = [
        {"session_id": "s", "input_length": 600, "output_length": 50, "timestamp": 0},
        {"session_id": "s", "input_length": 70, "output_length": 40, "delay": 2500},
    ]
    return _text(path / "multi_turn.jsonl", jsonl(rows))


def _trie(path: Path) -> Path:
    row = {
        "num_turns": 1,
        "input_prompt_length": 400,
        "assistant_response_length": [30],
        "tool_call_output_length": [20],
        "tool_call_latency": [1.5],
        "final_assistant_response_length": 60,
    }
    return _text(path / "rows.jsonl", jsonl([row]))


def _swe_agent(path: Path) -> Path:
    steps = [swe_agent_step(f"python t{i}.py", f"{i}" * 3400) for i in range(2)]
    document = {
        "environment": "swe_main",
        "trajectory": steps,
        "history": swe_agent_history(2),
        "info": {},
    }
    return _text(path / "org__repo-1.traj", json.dumps(document, indent=2))


def _swe_smith(path: Path) -> Path:
    fields = {"message_type": "action"}
    history = swe_agent_history(2, **fields)
    steps = [
        swe_agent_step("pytest", "x", execution_time=1.5, messages=history[: 2 + 2 * i])
        for i in range(2)
    ]
    document = {
        "trajectory": steps,
        "history": history,
        "info": {},
        "environment": "org__repo.0123abcd.lm_rewrite__x1",
    }
    return _text(path / "run.traj", json.dumps(document))


def _mini_swe_agent(path: Path) -> Path:
    messages = [
        {"role": "system", "content": "s" * 34},
        {"role": "user", "content": "t" * 68},
        {"role": "assistant", "content": "go\n```bash\npytest -q\n```"},
        {"role": "user", "content": "<returncode>0</returncode>"},
        {"role": "assistant", "content": "done\n```bash\necho END\n```"},
    ]
    return _text(path / "task.traj.json", json.dumps(messages, indent=1))


def _openhands_v0(path: Path) -> Path:
    return _text(path / "output.jsonl", jsonl([openhands_v0_row()]))


def _openhands_v1(path: Path) -> Path:
    folder = path / "0abc"
    (folder / "events").mkdir(parents=True)
    agent = {"llm": {"model": "m", "api_key": "secret"}}
    state = {
        "id": "0abc",
        "agent": agent,
        "stats": {"usage_to_metrics": {"agent": OPENHANDS_V1_METRICS}},
    }
    _text(folder / "base_state.json", json.dumps(state))
    for number, event in enumerate(openhands_v1_events()):
        _text(folder / "events" / f"event-{number:05d}-x.json", json.dumps(event))
    return folder


def _claude_code(path: Path) -> Path:
    lines = [
        {"type": "summary", "summary": "a task", "leafUuid": "x"},
        claude_line("user", 0, "fix it"),
        claude_answer(4, "m1", [tool_use("t1", "Bash", command="pytest -q")], 500, 20),
        tool_result(9, "t1", "x" * 34),
        claude_answer(12, "m2", [{"type": "text", "text": "fixed"}], 560, 8),
    ]
    return _text(path / "session.jsonl", jsonl(lines))


FIXTURES = Path(__file__).parent / "fixtures"
"""Small files written after the specification of each format."""


def _copied(name: str) -> Write:
    def write(path: Path) -> Path:
        return Path(shutil.copy(FIXTURES / name, path / name))

    return write


def _huggingface(path: Path) -> Path:
    import pandas as pd

    file = path / "train.parquet"
    rows = [tracelab_row("a", 0, 500, 20), tracelab_row("a", 1, 600, 30)]
    table = pd.DataFrame([{k: v for k, v in row.items() if v != []} for row in rows])
    table.to_parquet(file)
    return file


def _text(file: Path, content: str) -> Path:
    file.write_text(content)
    return file


WRITERS: dict[str, Write] = {
    "tracelab": _tracelab,
    "weka": _weka,
    "mooncake": _mooncake,
    "agentic_mooncake": _agentic_mooncake,
    "trie": _trie,
    "swe_agent": _swe_agent,
    "swe_smith": _swe_smith,
    "mini_swe_agent": _mini_swe_agent,
    "openhands_v0": _openhands_v0,
    "openhands_v1": _openhands_v1,
    "claude_code": _claude_code,
    "codex": _copied("codex.jsonl"),
    "atif": _copied("atif.json"),
    "otel_genai": _copied("otel_genai.jsonl"),
    "langfuse": _copied("langfuse.json"),
    "litellm": _copied("litellm.jsonl"),
    "inspect_log": _copied("inspect_log.json"),
    "bailian": _copied("bailian.jsonl"),
    "csv_requests": _copied("burstgpt.csv"),
    "huggingface": _huggingface,
}

RECORDED_PROMPTS: dict[str, list[list[int]]] = {
    "tracelab": [[500, 600], [700]],
    "weka": [[640, 700]],
    "mooncake": [[1100, 1300]],
    "agentic_mooncake": [[600, 720]],
    "trie": [[400, 450]],
    "openhands_v0": [[1000, 1100, 1200]],
    "openhands_v1": [[800, 900, 700]],
    "claude_code": [[500, 560]],
    "codex": [[9000, 9300, 9450, 2000]],
    "atif": [[1000, 1100, 1180]],
    "otel_genai": [[1000, 1100, 1200]],
    "langfuse": [[1000, 1050, 1150]],
    "litellm": [[1000, 1100, 1200], [900, 930]],
    "inspect_log": [[800, 930, 1000]],
    "bailian": [[70, 130, 100], [60]],
    "csv_requests": [[472, 617], [1087]],
    "huggingface": [[500, 600]],
}
"""Prompt lengths in the files above, for formats that record them."""


class Formats:
    """The builders above, for tests that cannot import this file."""

    writers = WRITERS
    fixtures = FIXTURES
    recorded_prompts = RECORDED_PROMPTS
    jsonl = staticmethod(jsonl)
    clock = staticmethod(clock)
    tracelab_row = staticmethod(tracelab_row)
    weka_trace = staticmethod(weka_trace)
    weka_request = staticmethod(weka_request)
    swe_agent_step = staticmethod(swe_agent_step)
    swe_agent_history = staticmethod(swe_agent_history)
    openhands_v0_row = staticmethod(openhands_v0_row)
    openhands_v1_events = staticmethod(openhands_v1_events)
    openhands_v1_metrics = OPENHANDS_V1_METRICS
    claude_line = staticmethod(claude_line)
    claude_answer = staticmethod(claude_answer)
    tool_use = staticmethod(tool_use)
    tool_result = staticmethod(tool_result)


@pytest.fixture(scope="session")
def formats() -> type[Formats]:
    return Formats


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real traces beside the project, where there are any."""
    folder = Path(__file__).parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real traces beside the project")
    return folder

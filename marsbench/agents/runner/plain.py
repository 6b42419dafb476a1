"""The plainest agent: a loop, a shell and an editor, with the standard library alone.

It shows what an agent's file has to hold, and it runs in any Python, so that everything around agents can
be tried without an agent's packages. It speaks with the tool names of OpenHands.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from marsbench.agents.runner.agents import AgentKind, Place
from marsbench.agents.runner.tools import ToolRecord

SYSTEM = "You repair software. Work with the tools; call finish when the tests pass."
OUTPUT_CHARS = 8000


class PlainConversation:
    """One conversation."""

    def __init__(self, place: Place) -> None:
        self.turns = 0
        self._place = place
        self._messages: list[dict[str, Any]] = []

    def prepare(self) -> None:
        """Write the first messages."""
        self._messages = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": self._place.order.instruction},
        ]

    def run(self) -> tuple[bool, str]:
        """Ask, run what was asked for, ask again."""
        while self.turns < self._place.order.max_turns:
            message = self._ask()
            self.turns += 1
            self._messages.append(message)
            calls = message.get("tool_calls") or []
            for call in calls:
                if call["function"]["name"] == "finish":
                    return True, "finished"
                self._call(call)
            if not calls:
                return False, "the model called no tool"
            if self._place.tools.refused:
                return False, self._place.tools.refused
        return False, f"not done after {self.turns} turns"

    def steps(self) -> list[dict[str, Any]]:
        """From the messages."""
        steps: list[dict[str, Any]] = []
        for message in self._messages:
            role = message["role"]
            if role == "tool":
                result = {"source_call_id": message["tool_call_id"], "content": message["content"]}
                steps[-1].setdefault("observation", {"results": []})["results"].append(result)
                continue
            source = "agent" if role == "assistant" else role
            step = {"step_id": len(steps) + 1, "source": source, "message": message["content"]}
            if message.get("tool_calls"):
                step["tool_calls"] = [
                    {
                        "tool_call_id": call["id"],
                        "function_name": call["function"]["name"],
                        "arguments": json.loads(call["function"]["arguments"]),
                    }
                    for call in message["tool_calls"]
                ]
            steps.append(step)
        return steps

    def close(self) -> None:
        """Nothing is kept between calls."""

    def _ask(self) -> dict[str, Any]:
        order = self._place.order
        parts = urlsplit(order.base_url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
        body = {"model": order.model, "messages": self._messages, "tools": TOOLS}
        headers = {
            "authorization": f"Bearer {order.api_key}",
            "content-type": "application/json",
            "x-session-id": order.session,
        }
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise ConnectionError(f"the endpoint answers {answer.status}: {data[:200]!r}")
        message: dict[str, Any] = json.loads(data)["choices"][0]["message"]
        return {name: value for name, value in message.items() if value is not None}

    def _call(self, call: dict[str, Any]) -> None:
        name, text = call["function"]["name"], call["function"]["arguments"]
        given = json.loads(text)
        inside = name != "terminal"
        with self._place.tools.call(
            self.turns - 1, call["id"], name, text, inside=inside
        ) as record:
            try:
                output = TOOL_FUNCTIONS[name](given, record, self._place.shell)
            except (OSError, ValueError, KeyError) as error:
                record.error = True
                output = f"{type(error).__name__}: {error}"
        content = output[-OUTPUT_CHARS:]
        self._messages.append({"role": "tool", "tool_call_id": call["id"], "content": content})


def _terminal(given: dict[str, Any], record: ToolRecord, shell: Sequence[str]) -> str:
    with subprocess.Popen(  # noqa: S603 - what the model asked for
        [*shell, "-c", given["command"]],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate(timeout=given.get("timeout"))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            record.timed_out = True
    record.error = process.returncode != 0
    return f"{output.decode(errors='replace')}\n[exit code {process.returncode}]"


def _editor(given: dict[str, Any], record: ToolRecord, shell: Sequence[str]) -> str:
    path = Path(given["path"])
    if given["command"] == "view":
        first, last = given.get("view_range") or (1, -1)
        lines = path.read_text(encoding="utf-8").splitlines()
        return "\n".join(lines[first - 1 : None if last < 0 else last])
    if given["command"] == "create":
        path.write_text(given["file_text"], encoding="utf-8")
    else:
        text = path.read_text(encoding="utf-8")
        if text.count(given["old_str"]) != 1:
            raise ValueError("old_str must occur exactly once")
        path.write_text(text.replace(given["old_str"], given["new_str"]), encoding="utf-8")
    return "edited"


TOOL_FUNCTIONS = {"terminal": _terminal, "file_editor": _editor}


def _described(name: str, what: str, **properties: str) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in properties.items()},
    }
    function = {"name": name, "description": what, "parameters": schema}
    return {"type": "function", "function": function}


TOOLS = [
    _described("terminal", "Runs a command in bash.", command="string", timeout="number"),
    _described(
        "file_editor",
        "Views a file, creates it, or replaces text that occurs once.",
        command="string",
        path="string",
        file_text="string",
        old_str="string",
        new_str="string",
        view_range="array",
    ),
    _described("finish", "Ends the task.", message="string"),
]

KIND = AgentKind(
    name="plain",
    packages=(),
    env={},
    load=lambda: None,
    make=PlainConversation,
)

"""Scripts in the words of another agent: scripts are written with the tool names of OpenHands."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from marsbench.agents.task import WORKSPACE, Message

Call = dict[str, Any]
DONE = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
"""How mini-swe-agent is told that a task is over."""

EDIT = """\
import base64, json, pathlib, sys
a = json.loads(base64.b64decode(sys.argv[1]))
p = pathlib.Path(a["path"])
if a["command"] == "create":
    p.write_text(a["file_text"])
else:
    t = p.read_text()
    assert t.count(a["old_str"]) == 1, "old_str must occur exactly once"
    p.write_text(t.replace(a["old_str"], a["new_str"]))
print("edited", p)
"""
"""What stands for an edit where there is only a shell."""


def spoken(message: Message, agent: str, workspace: str) -> Message:
    """A script's message for an agent, with the path of its workspace in it."""
    placed = json.loads(json.dumps(message).replace(WORKSPACE, workspace))
    assert isinstance(placed, dict)
    translate = DIALECTS[agent]
    if placed.get("tool_calls"):
        placed["tool_calls"] = [translate(call) for call in placed["tool_calls"]]
    return placed


def _as_it_is(call: Call) -> Call:
    return call


def _with_risk(call: Call) -> Call:
    """The command refuses calls that do not say how risky they are."""
    function: Mapping[str, Any] = call["function"]
    given = {**json.loads(function["arguments"]), "security_risk": "LOW"}
    return {**call, "function": {**function, "arguments": json.dumps(given)}}


def _for_bash(call: Call) -> Call:
    """A call of one of OpenHands' tools as one of mini-swe-agent's ``bash``."""
    function: Mapping[str, Any] = call["function"]
    given = json.loads(function["arguments"])
    name = function["name"]
    if name == "terminal":
        command = str(given["command"])
    elif name == "finish":
        command = DONE
    elif name == "file_editor" and given["command"] == "view":
        command = _view(given)
    elif name == "file_editor":
        packed = base64.b64encode(json.dumps(given).encode()).decode()
        command = f"python3 -c {shlex.quote(EDIT)} {packed}"
    else:
        command = "true"
    return {**call, "function": {"name": "bash", "arguments": json.dumps({"command": command})}}


def _view(given: Mapping[str, Any]) -> str:
    path = shlex.quote(str(given["path"]))
    if span := given.get("view_range"):
        return f"sed -n {int(span[0])},{int(span[1])}p {path}"
    return f"if [ -d {path} ]; then ls {path}; else cat -n {path}; fi"


DIALECTS: Mapping[str, Callable[[Call], Call]] = {
    "openhands": _as_it_is,
    "openhands-cli": _with_risk,
    "mini-swe-agent": _for_bash,
    "plain": _as_it_is,
}
"""Agent -> how it is spoken to."""

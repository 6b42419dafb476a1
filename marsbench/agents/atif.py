"""Trajectories in ATIF, the interchange format for what agents said and did: written here, and read back.

A trajectory is a JSON object with ``schema_version`` (ATIF-v1.8), ``session_id``, ``agent``, ``steps`` and
``final_metrics``. A step has ``source`` (system, user, agent), ``message``, and for agents ``tool_calls``,
the ``observation`` with their results, and ``metrics`` with the reply's tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marsbench.agents.task import ScriptedReply
from marsbench.errors import ConfigError, TraceError

VERSION = "ATIF-v1.8"
MAJOR = "ATIF-v1."
SUFFIX = ".atif.json"
CHARS_PER_TOKEN = 4
"""For replies whose tokens a trajectory does not say."""


@dataclass(frozen=True, slots=True)
class TurnTokens:
    """What one reply cost."""

    prompt: int
    cached: int
    output: int


def completed(
    found: Mapping[str, Any],
    *,
    session_id: str,
    version: str,
    tokens: Sequence[TurnTokens],
    outcome: Mapping[str, Any],
) -> dict[str, Any]:
    """A trajectory as an agent wrote it, with what only the gateway and the driver know."""
    steps = [dict(step) for step in found.get("steps", ())]
    replies = [step for step in steps if step.get("source") == "agent"]
    for step, spent in zip(replies, tokens, strict=False):
        step["metrics"] = {
            "prompt_tokens": spent.prompt,
            "completion_tokens": spent.output,
            "cached_tokens": spent.cached,
        }
    final = {
        "total_prompt_tokens": sum(spent.prompt for spent in tokens),
        "total_completion_tokens": sum(spent.output for spent in tokens),
        "total_cached_tokens": sum(spent.cached for spent in tokens),
        "total_steps": len(steps),
    }
    agent = {**found.get("agent", {}), "version": version}
    return {
        "schema_version": VERSION,
        "session_id": session_id,
        "agent": agent,
        "steps": steps,
        "final_metrics": final,
        "extra": dict(outcome),
    }


def write(path: Path, trajectory: Mapping[str, Any]) -> None:
    """One file."""
    path.write_text(json.dumps(trajectory, ensure_ascii=False, indent=1), encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """A trajectory of any version 1; TraceError with what is wrong."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TraceError(f"cannot be read as JSON: {error}", path=str(path)) from error
    if not isinstance(found, dict) or not str(found.get("schema_version", "")).startswith(MAJOR):
        raise TraceError(f"is no trajectory: schema_version must be {MAJOR}*", path=str(path))
    steps = found.get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise TraceError("steps: expected a list of objects", path=str(path))
    return found


def script_of(trajectory: Mapping[str, Any]) -> list[ScriptedReply]:
    """The agent's replies as a script that can be played back."""
    script = []
    for index, step in enumerate(trajectory["steps"]):
        if step.get("source") != "agent":
            continue
        message: dict[str, Any] = {"role": "assistant", "content": _text(step.get("message"))}
        calls = [
            {
                "id": call.get("tool_call_id") or f"call_{index}_{number}",
                "type": "function",
                "function": {
                    "name": call.get("function_name", ""),
                    "arguments": json.dumps(call.get("arguments") or {}, ensure_ascii=False),
                },
            }
            for number, call in enumerate(step.get("tool_calls") or ())
        ]
        if calls:
            message["tool_calls"] = calls
        counted = (step.get("metrics") or {}).get("completion_tokens")
        script.append(ScriptedReply(message, counted or estimated_tokens(message)))
    return script


def file_name(session_id: str) -> str:
    """The name of a session's file."""
    return f"{session_id.replace('/', '--')}{SUFFIX}"


def recorded_script(folder: Path, session_id: str) -> list[ScriptedReply]:
    """The script that a session's trajectory in a folder is; ConfigError if there is none."""
    path = folder / file_name(session_id)
    if not path.is_file():
        raise ConfigError(f"driver.params.scripts: {path} is missing; record that session first")
    return script_of(read(path))


def estimated_tokens(message: Mapping[str, Any]) -> int:
    """Tokens of a reply, by its length."""
    size = len(message.get("content") or "")
    for call in message.get("tool_calls") or ():
        size += len(call["function"]["name"]) + len(call["function"]["arguments"])
    return max(1, -(-size // CHARS_PER_TOKEN))


def _text(message: Any) -> str:
    """Text of a step; parts of other kinds are left out."""
    if isinstance(message, list):
        return "".join(str(part.get("text") or "") for part in message if isinstance(part, dict))
    return str(message or "")

"""Events of an OpenHands conversation as steps of a trajectory (ATIF)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def steps_of(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Steps in order: the calls of one reply are one step, and their results stand in it."""
    steps: list[dict[str, Any]] = []
    replies: dict[str, dict[str, Any]] = {}
    calls: dict[str, dict[str, Any]] = {}
    for event in events:
        kind = event.get("kind") or ""
        at = {"timestamp": event["timestamp"]} if event.get("timestamp") else {}
        if kind == "SystemPromptEvent":
            steps.append(_step(steps, "system", _text([event.get("system_prompt") or {}]), at))
        elif kind == "MessageEvent":
            message = event.get("llm_message") or {}
            source = "agent" if message.get("role") == "assistant" else "user"
            steps.append(_step(steps, source, _text(message.get("content") or ()), at))
        elif kind == "ActionEvent":
            reply = event.get("llm_response_id") or event["id"]
            if reply not in replies:
                step = replies[reply] = _step(steps, "agent", _text(event.get("thought") or ()), at)
                step["extra"] = {"llm_response_id": reply}
                steps.append(step)
            call = event.get("tool_call") or {}
            replies[reply].setdefault("tool_calls", []).append(
                {
                    "tool_call_id": event.get("tool_call_id") or "",
                    "function_name": event.get("tool_name") or "",
                    "arguments": _arguments(call.get("arguments")),
                }
            )
            calls[event.get("tool_call_id") or ""] = replies[reply]
        elif kind in {"ObservationEvent", "AgentErrorEvent"}:
            given = calls.get(event.get("tool_call_id") or "")
            if given is not None:
                seen = event.get("observation") or {}
                content = event.get("error") or _text(seen.get("content") or ())
                result = {"source_call_id": event.get("tool_call_id"), "content": content}
                given.setdefault("observation", {"results": []})["results"].append(result)
    return steps


def _step(before: Sequence[Any], source: str, message: str, more: dict[str, Any]) -> dict[str, Any]:
    return {"step_id": len(before) + 1, "source": source, "message": message, **more}


def _text(parts: Any) -> str:
    if isinstance(parts, str):
        return parts
    return "".join(str(part.get("text") or "") for part in parts if isinstance(part, dict))


def _arguments(text: Any) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except (TypeError, ValueError):
        return {"raw": str(text)}
    return found if isinstance(found, dict) else {"raw": found}

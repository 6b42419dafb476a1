"""Makes LLM calls of chat messages: lengths, tool calls, and what two prompts share."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import msgspec

from marsbench.core import SharedPrefix, ToolCall
from workloads.context import RecordedCall
from workloads.tool_class import TYPICAL_WALL_S, tool_class

CHARS_PER_TOKEN = 3.4
"""Text of tool results per token: 3.37 over 6,455 results of coding sessions whose tokens were
counted (Claude-2 tokenizer)."""
FRAMING_TOKENS = 4
"""Role markers of one chat message."""


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message, reduced to what its tokens depend on."""

    role: str
    text: str
    """Content and arguments of tool calls."""
    calls: tuple[tuple[str, str], ...] = ()
    """Tool name and command of each call."""
    demonstration: bool = False

    def tokens(self, chars_per_token: float) -> int:
        return text_tokens(self.text, chars_per_token) + FRAMING_TOKENS


class ChatStep(NamedTuple):
    """One recorded LLM call of a chat, with its whole prompt and its answer."""

    prompt: Sequence[Message]
    output: Message
    tools: tuple[ToolCall, ...] = ()
    think_s: float = 0.0


def text_tokens(text: str, chars_per_token: float = CHARS_PER_TOKEN) -> int:
    """Estimate the tokens of a text."""
    return char_tokens(len(text), chars_per_token)


def char_tokens(chars: int, chars_per_token: float = CHARS_PER_TOKEN) -> int:
    """Estimate the tokens of that many characters."""
    return math.ceil(chars / chars_per_token)


def content_text(content: object) -> str:
    """Return the text of a message's content, which may be a string or a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(content_text(part) for part in content)
    if isinstance(content, dict):
        for key in ("text", "content", "thinking"):
            if key in content:
                return content_text(content[key])
    return ""


def chat_message(value: dict[str, Any]) -> Message:
    """Read a message in OpenAI's form, which SWE-agent and mini-SWE-agent use, too."""
    calls: list[tuple[str, str]] = []
    arguments: list[str] = []
    asked = value.get("tool_calls")
    for call in asked if isinstance(asked, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        function = function if isinstance(function, dict) else {}
        raw = function.get("arguments") or ""
        raw = raw if isinstance(raw, str) else msgspec.json.encode(raw).decode()
        name = str(function.get("name") or "")
        calls.append((name, argument_command(raw)))
        arguments.append(name + raw)
    content = value.get("content", value.get("text"))
    return Message(
        role=str(value.get("role", "")),
        text=content_text(content) + "".join(arguments),
        calls=tuple(calls),
        demonstration=bool(value.get("is_demo")),
    )


def argument_command(arguments: object) -> str:
    """Return the command inside the arguments of a tool call (a JSON string or an object), "" if
    there is none.
    """
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments)
        except msgspec.DecodeError:
            return ""
    if isinstance(arguments, dict):
        for key in ("command", "cmd", "code"):
            found = arguments.get(key)
            if isinstance(found, str):
                return found
            if isinstance(found, list):
                return " ".join(str(word) for word in found)
    return ""


class PromptPart(NamedTuple):
    """One message of a logged prompt, with enough to tell whether another prompt has it, too."""

    digest: str
    tokens: int


def prompt_parts(prompt: object) -> tuple[PromptPart, ...]:
    """Return the messages of a logged prompt: a list, an object that holds one, or either as JSON text."""
    if isinstance(prompt, str):
        try:
            prompt = msgspec.json.decode(prompt)
        except msgspec.DecodeError:
            prompt = [prompt]
    if isinstance(prompt, dict):
        prompt = prompt.get("messages")
    if not isinstance(prompt, list):
        return ()
    texts = [content_text(m.get("parts") or m) if isinstance(m, dict) else str(m) for m in prompt]
    roles = [str(m.get("role", "")) if isinstance(m, dict) else "" for m in prompt]
    return tuple(
        PromptPart(text_id(f"{role}\0{text}"), text_tokens(text) + FRAMING_TOKENS)
        for role, text in zip(roles, texts, strict=True)
    )


def unchanged_tokens(
    before: Sequence[PromptPart], after: Sequence[PromptPart], prompt_tokens: int
) -> int | None:
    """Return how many leading tokens a prompt has from the one before, or None if it extends it.

    ``prompt_tokens`` is the recorded length of the prompt, which its parts are scaled to.
    """
    same = 0
    for old, new in zip(before, after, strict=False):
        if old.digest != new.digest:
            break
        same += 1
    if same == len(before):
        return None
    total = sum(part.tokens for part in after)
    kept = sum(part.tokens for part in after[:same])
    return round(prompt_tokens * kept / total) if total else 0


def opening_prefix(prompt: Sequence[Message], chars_per_token: float) -> SharedPrefix | None:
    """Return the system prompt and demonstrations, which all sessions with the same opening share."""
    opening: list[Message] = []
    for message in prompt:
        if message.role != "system" and not message.demonstration:
            break
        opening.append(message)
    if not opening:
        return None
    text = "\0".join(message.text for message in opening)
    tokens = sum(message.tokens(chars_per_token) for message in opening)
    return SharedPrefix(text_id(text), tokens)


def text_id(text: str) -> str:
    """Return the id of a shared prefix that is known by its text."""
    return f"text/{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def untimed_tool(name: str, command: str, result: str | None) -> ToolCall:
    """Return a call whose duration no format recorded; it is assumed to be the median of its class."""
    kind = tool_class(name, command)
    return ToolCall(
        name=name,
        tool_class=kind,
        wall_s=TYPICAL_WALL_S[kind],
        result_tokens=None if result is None else text_tokens(result),
    )


def fit_chars_per_token(steps: Sequence[ChatStep], recorded_tokens: int) -> float:
    """Return the characters per token that make all prompts together as long as recorded.

    Only a plausible ratio (2 to 6) is believed; else ``CHARS_PER_TOKEN``.
    """
    framing = sum(FRAMING_TOKENS * len(step.prompt) for step in steps)
    chars = sum(len(message.text) for step in steps for message in step.prompt)
    if recorded_tokens <= framing:
        return CHARS_PER_TOKEN
    ratio = chars / (recorded_tokens - framing)
    return ratio if 2.0 <= ratio <= 6.0 else CHARS_PER_TOKEN


def step_calls(
    steps: Sequence[ChatStep], chars_per_token: float = CHARS_PER_TOKEN
) -> list[RecordedCall]:
    """Return the calls of chat steps, with tokens from text and reuse from the messages they begin with."""
    calls: list[RecordedCall] = []
    before: Sequence[Message] = ()
    answer: Message | None = None
    for step in steps:
        same = _common(before, step.prompt)
        unchanged = None
        if calls and same < len(before):
            unchanged = sum(m.tokens(chars_per_token) for m in step.prompt[:same])
        call = RecordedCall(
            prompt_tokens=sum(m.tokens(chars_per_token) for m in step.prompt),
            output_tokens=max(1, text_tokens(step.output.text, chars_per_token)),
            tools=step.tools,
            think_s=step.think_s,
            unchanged_tokens=unchanged,
        )
        if answer is not None and not _resends(step.prompt, same, answer):
            calls[-1] = replace(calls[-1], resent_tokens=0)
        calls.append(call)
        before, answer = step.prompt, step.output
    return calls


def _common(before: Sequence[Message], after: Sequence[Message]) -> int:
    same = 0
    for old, new in zip(before, after, strict=False):
        if (old.role, old.text) != (new.role, new.text):
            break
        same += 1
    return same


def _resends(prompt: Sequence[Message], start: int, output: Message) -> bool:
    """Tell whether a prompt carries the previous answer after what both prompts have in common."""
    return any(m.role == "assistant" and m.text == output.text for m in prompt[start:])

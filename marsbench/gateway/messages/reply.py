"""What a backend answers, observed as it passes: token counts, tool calls, digests. No text kept."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import msgspec

from marsbench.gateway.messages.classify import classify
from marsbench.gateway.messages.prompt import ReplyPrint, arguments_digest

MAX_NAME_CHARS = 64
COMMAND_CHARS = 400
"""Start of a shell tool's arguments, kept until its class is known."""


@dataclass(slots=True)
class ReplyCall:
    """One tool call of a reply."""

    call_id: str = ""
    name: str = ""
    arguments: str = ""
    """Only its first COMMAND_CHARS."""
    arguments_bytes: int = 0
    hasher: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))
    fragments: list[str] | None = None
    """All of the arguments, where their print is that of the object (Anthropic's API)."""

    def add_arguments(self, text: str) -> None:
        """Take a fragment in."""
        data = text.encode("utf-8", "surrogatepass")
        self.arguments_bytes += len(data)
        self.hasher.update(data)
        if self.fragments is not None:
            self.fragments.append(text)
        if len(self.arguments) < COMMAND_CHARS:
            self.arguments = (self.arguments + text)[:COMMAND_CHARS]

    def print(self) -> bytes:
        """Return the digest of the arguments, as ``ReplyPrint`` has it."""
        if self.fragments is None:
            return bytes(self.hasher.digest())
        try:
            return arguments_digest(msgspec.json.decode("".join(self.fragments) or "{}"))
        except (msgspec.DecodeError, UnicodeError):
            return bytes(self.hasher.digest())


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _ToolCall(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _ReplyChoice(msgspec.Struct):
    index: int = 0
    delta: _Message | None = None
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None


class _TokenDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _TokenUsage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _TokenDetails | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _TokenDetails | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class _Item(msgspec.Struct):
    """An output item of the Responses API or a content block of Anthropic's."""

    type: str = ""
    text: str | None = None
    thinking: str | None = None
    input: Any = None
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    content: list[dict[str, Any]] | None = None


class _Response(msgspec.Struct):
    id: str | None = None
    output: list[_Item] | None = None
    usage: _TokenUsage | None = None
    status: str | None = None


class _ReplyChunk(msgspec.Struct):
    """Union of a chat or completion object, its stream chunks, and Responses events."""

    id: str | None = None
    object: str | None = None
    type: str | None = None
    choices: list[_ReplyChoice] | None = None
    usage: _TokenUsage | None = None
    error: Any = None
    delta: Any = None
    item: _Item | None = None
    response: _Response | None = None
    output: list[_Item] | None = None
    index: int = 0
    message: _Response | None = None
    content_block: _Item | None = None
    content: list[_Item] | None = None
    stop_reason: str | None = None


_DECODER = msgspec.json.Decoder(_ReplyChunk)
_LIST_DECODER = msgspec.json.Decoder(list[_ReplyChunk])


class CallFacts(msgspec.Struct, frozen=True, array_like=True):
    """A tool call that a reply asks for."""

    call_id: str
    name: str
    tool_class: str
    arguments: bytes
    """Digest."""


class ReplyFacts(msgspec.Struct, frozen=True, array_like=True):
    """What is known of a reply once it has ended."""

    response_id: str = ""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str = ""
    calls: tuple[CallFacts, ...] = ()
    text: bytes = b""
    """Digest."""
    text_bytes: int = 0
    reasoning_bytes: int = 0
    output_bytes: int = 0
    """All of the output."""
    events: int = 0
    garbage: int = 0
    error: str = ""

    def print(self) -> ReplyPrint:
        """Return how a later prompt would carry this reply, if verbatim."""
        calls = tuple((call.call_id, call.name, call.arguments) for call in self.calls)
        return ReplyPrint(self.text, calls)


class Reply:
    """Reads one response, whole or in stream events."""

    def __init__(self) -> None:
        self.response_id = ""
        self.prompt_tokens: int | None = None
        self.output_tokens: int | None = None
        self.cached_tokens: int | None = None
        self.finish_reason = ""
        self.calls: dict[int, ReplyCall] = {}
        self.reasoning_bytes = 0
        self.events = 0
        """Stream events that carried output."""
        self.garbage = 0
        """Events or bodies that could not be read."""
        self.error = ""
        self._text = hashlib.blake2b(digest_size=16)
        self._parts: list[str] = []
        """Text that is not in the digest yet."""
        self._text_bytes = 0
        self._said = False
        """The chunk that is read now carries output."""

    @property
    def text_bytes(self) -> int:
        """Of the text, tool calls and reasoning apart."""
        self._take_text()
        return self._text_bytes

    @property
    def output_bytes(self) -> int:
        """All of the output."""
        calls = sum(len(call.name) + call.arguments_bytes for call in self.calls.values())
        return self.text_bytes + self.reasoning_bytes + calls

    def facts(self) -> ReplyFacts:
        """Return all that is known of it by now."""
        self._take_text()
        return ReplyFacts(
            response_id=self.response_id,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            cached_tokens=self.cached_tokens,
            finish_reason=self.finish_reason,
            calls=tuple(
                CallFacts(c.call_id, c.name, classify(c.name, c.arguments), c.print())
                for c in self.calls.values()
            ),
            text=self._text.digest(),
            text_bytes=self._text_bytes,
            reasoning_bytes=self.reasoning_bytes,
            output_bytes=self.output_bytes,
            events=self.events,
            garbage=self.garbage,
            error=self.error,
        )

    def feed(self, data: bytes) -> bool:
        """Take in a body or the data of an event; True if this is only the token counts."""
        try:
            chunk = _DECODER.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.garbage += 1
            return False
        return self._chunk(chunk)

    def feed_all(self, events: list[bytes]) -> None:
        """Take in the data of many events: decoding them in one go takes half the time."""
        try:
            chunks = _LIST_DECODER.decode(b"[" + b",".join(events) + b"]")
        except (msgspec.DecodeError, UnicodeDecodeError):  # one of them; the others can be read
            for data in events:
                self.feed(data)
            return
        for chunk in chunks:
            self._chunk(chunk)

    def _chunk(self, chunk: _ReplyChunk) -> bool:
        if chunk.error is not None:
            self.error = "the backend reported an error"
        before = self.reasoning_bytes + len(self.calls)
        self._said = False
        kind = chunk.type
        if kind is None or chunk.choices is not None:
            self._object(chunk)
        elif kind.startswith(("message", "content_block")):
            self._anthropic(kind, chunk)
        else:
            self._responses_event(kind, chunk)
        if self._said or self.reasoning_bytes + len(self.calls) > before:
            self.events += 1
        return chunk.usage is not None and chunk.choices == []

    def _object(self, chunk: _ReplyChunk) -> None:
        """A chat, completion or Responses object, or a chunk of the first two."""
        self.response_id = chunk.id or self.response_id
        for choice in chunk.choices or ():
            self._choice(choice)
        for item in chunk.output or ():
            self._item(item)
        self._usage(chunk.usage)

    def _anthropic(self, kind: str, chunk: _ReplyChunk) -> None:
        """A message of Anthropic's API, or an event of its stream."""
        if kind == "message_start" and chunk.message is not None:
            self.response_id = chunk.message.id or ""
            self._usage(chunk.message.usage)
        elif kind == "content_block_start" and chunk.content_block is not None:
            self._block(chunk.index, chunk.content_block)
        elif kind == "content_block_delta" and isinstance(chunk.delta, dict):
            self._add_text(str(chunk.delta.get("text") or ""))
            self.reasoning_bytes += len(str(chunk.delta.get("thinking") or ""))
            if chunk.index in self.calls:
                self.calls[chunk.index].add_arguments(str(chunk.delta.get("partial_json") or ""))
        elif kind in {"message", "message_delta"}:
            self.response_id = chunk.id or self.response_id
            for index, block in enumerate(chunk.content or ()):
                self._block(index, block)
            if isinstance(chunk.delta, dict):
                self.finish_reason = str(chunk.delta.get("stop_reason") or self.finish_reason)
            self.finish_reason = chunk.stop_reason or self.finish_reason
            self._usage(chunk.usage)

    def _block(self, index: int, block: _Item) -> None:
        """A content block: whole, or the start of one whose rest follows."""
        if block.type == "tool_use":
            call = ReplyCall(block.id or "", (block.name or "")[:MAX_NAME_CHARS], fragments=[])
            if block.input:
                call.add_arguments(msgspec.json.encode(block.input).decode())
            self.calls[index] = call
        else:
            self._add_text(block.text or "")
            self.reasoning_bytes += len(block.thinking or "")

    def _choice(self, choice: _ReplyChoice) -> None:
        self.finish_reason = choice.finish_reason or self.finish_reason
        if choice.text:
            self._add_text(choice.text)
        for message in (choice.delta, choice.message):
            if message is None:
                continue
            if message.content:
                self._add_text(message.content)
            self.reasoning_bytes += len(message.reasoning_content or message.reasoning or "")
            for position, given in enumerate(message.tool_calls or ()):
                number = position if given.index is None else given.index
                self._call(choice.index * 1000 + number, given)

    def _call(self, key: int, given: _ToolCall) -> None:
        call = self.calls.setdefault(key, ReplyCall())
        call.call_id = given.id or call.call_id
        if given.function is None:
            return
        if given.function.name:
            call.name = (call.name + given.function.name)[:MAX_NAME_CHARS]
        arguments = given.function.arguments
        if isinstance(arguments, dict):
            arguments = msgspec.json.encode(arguments).decode()
        if arguments:
            call.add_arguments(arguments)

    def _responses_event(self, kind: str, chunk: _ReplyChunk) -> None:
        if kind == "response.output_text.delta" and isinstance(chunk.delta, str):
            self._add_text(chunk.delta)
        elif kind.startswith("response.reasoning") and isinstance(chunk.delta, str):
            self.reasoning_bytes += len(chunk.delta)
        elif kind == "response.output_item.done" and chunk.item is not None:
            if chunk.item.type == "function_call":
                self._item(chunk.item)
        elif chunk.response is not None:
            self.response_id = chunk.response.id or self.response_id
            if kind in {"response.completed", "response.incomplete", "response.failed"}:
                self.finish_reason = chunk.response.status or kind.rpartition(".")[2]
                self._usage(chunk.response.usage)
        if kind in {"error", "response.failed"}:
            self.error = "the backend reported an error"

    def _item(self, item: _Item) -> None:
        """An output item of the Responses API."""
        if item.type == "function_call":
            call = ReplyCall(item.call_id or item.id or "", (item.name or "")[:MAX_NAME_CHARS])
            call.add_arguments(item.arguments or "")
            self.calls[len(self.calls)] = call
        elif item.type == "message":
            for part in item.content or ():
                text = part.get("text")
                if isinstance(text, str):
                    self._add_text(text)
        elif item.type == "reasoning":
            self.reasoning_bytes += len(msgspec.json.encode(item.content or ()))

    def _usage(self, usage: _TokenUsage | None) -> None:
        if usage is None:
            return
        prompt = usage.input_tokens if usage.prompt_tokens is None else usage.prompt_tokens
        output = usage.output_tokens if usage.completion_tokens is None else usage.completion_tokens
        if prompt is not None and usage.cache_read_input_tokens is not None:
            self.cached_tokens = usage.cache_read_input_tokens
            prompt += self.cached_tokens + (usage.cache_creation_input_tokens or 0)
        details = usage.prompt_tokens_details or usage.input_tokens_details
        self.prompt_tokens = prompt if prompt is not None else self.prompt_tokens
        self.output_tokens = output if output is not None else self.output_tokens
        if details is not None and details.cached_tokens is not None:
            self.cached_tokens = details.cached_tokens

    def _add_text(self, text: str) -> None:
        if text:
            self._said = True
            self._parts.append(text)

    def _take_text(self) -> None:
        if self._parts:
            data = "".join(self._parts).encode("utf-8", "surrogatepass")
            self._parts.clear()
            self._text_bytes += len(data)
            self._text.update(data)

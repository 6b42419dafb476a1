"""What a request asks for: its prompt as pieces that can be hashed, and its tool results.

Pieces are canonical bytes of the shared head (tools, system messages) and of each message after
it, so that the same message gives the same bytes in every request of a session, whatever cache
marks or content shape the client put around it.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from marsbench.gateway.problems import ApiProblem

CHUNK_BYTES = 1024
"""Piece size of prompts that are plain text or token ids."""
HEAD_ROLES = {"system", "developer"}

_encode = msgspec.json.Encoder(order="deterministic").encode


class Mark(NamedTuple):
    """Where a session's prompt ended: enough to tell whether a later one extends it."""

    depth: int
    """Pieces (after the head) in the prompt."""
    digest: bytes
    """Chain over all complete pieces."""
    tail: bytes = b""
    """Digest of an incomplete last piece (text prompts)."""
    tail_bytes: int = 0


class ReplyPrint(NamedTuple):
    """An assistant message by its digests: as generated, or as a later prompt carries it."""

    text: bytes
    calls: tuple[tuple[str, str, bytes], ...]
    """(call id, tool name, digest of the arguments)."""


class ToolResult(NamedTuple):
    """What came back for one tool call."""

    call_id: str
    num_bytes: int
    error: bool


class PromptText(NamedTuple):
    """The bytes of a prompt."""

    head: bytes
    """Tools and leading system messages."""
    pieces: list[bytes]
    messages: Sequence[Any] = ()
    """The messages the pieces came from; empty for text and token prompts."""


@dataclass(slots=True)
class Prompt:
    """The prompt of one request: what identifies it, and on demand its text."""

    model: str
    stream: bool
    tokens: int | None
    """Exact length, where the prompt is token ids."""
    previous_response: str
    num_bytes: int
    """Length of the whole prompt."""
    head_bytes: int
    head_digest: bytes
    """Which shared head this is."""
    chain: list[bytes]
    """``chain[i]`` covers the pieces up to ``i``; of those that later prompts can only repeat whole."""
    tail: bytes
    """Digest of an incomplete last piece (text prompts)."""
    tail_bytes: int
    read: Callable[[], PromptText] = field(repr=False, compare=False)
    """Its text. May take time: only what a request says beyond its identity needs it."""

    @property
    def num_pieces(self) -> int:
        """Pieces after the head."""
        return len(self.chain) + (self.tail_bytes > 0)

    def mark(self) -> Mark:
        """Return where this prompt ends."""
        last = self.chain[-1] if self.chain else b""
        return Mark(len(self.chain), last, self.tail, self.tail_bytes)

    def extends(self, mark: Mark) -> bool:
        """Whether this prompt starts with the marked one and goes on after it."""
        if mark.depth and (
            len(self.chain) < mark.depth or self.chain[mark.depth - 1] != mark.digest
        ):
            return False
        if not mark.tail_bytes:
            return self.num_pieces > mark.depth > 0
        if self.num_pieces <= mark.depth:
            return False
        piece = self.read().pieces[mark.depth]
        longer = len(piece) > mark.tail_bytes or self.num_pieces > mark.depth + 1
        return longer and digest(piece[: mark.tail_bytes]) == mark.tail

    def repeats(self, mark: Mark) -> bool:
        """Whether this is the marked prompt again (a retry)."""
        return self.mark() == mark

    def after(self, mark: Mark) -> Sequence[Any]:
        """Return the messages that the marked prompt did not have."""
        return self.read().messages[mark.depth :]


def prompt_of(
    text: PromptText,
    model: str,
    *,
    stream: bool,
    tokens: int | None = None,
    previous_response: str = "",
) -> Prompt:
    """Return a prompt whose text is at hand."""
    pieces = text.pieces
    whole = bool(text.messages or not pieces or len(pieces[-1]) == CHUNK_BYTES)
    tail = b"" if whole else pieces[-1]
    running = hashlib.blake2b(digest_size=16)
    chain = []
    for piece in pieces if whole else pieces[:-1]:
        running.update(len(piece).to_bytes(8, "little"))
        running.update(piece)
        chain.append(running.digest())
    return Prompt(
        model=model,
        stream=stream,
        tokens=tokens,
        previous_response=previous_response,
        num_bytes=len(text.head) + sum(map(len, pieces)),
        head_bytes=len(text.head),
        head_digest=digest(text.head),
        chain=chain,
        tail=digest(tail),
        tail_bytes=len(tail),
        read=lambda: text,
    )


def digest(data: bytes) -> bytes:
    """Return a digest that is used for identity inside one gateway."""
    return hashlib.blake2b(data, digest_size=16).digest()


def read_prompt(api: str, body: Mapping[str, Any]) -> Prompt:
    """Read the prompt of a request body; ApiProblem (400) if it has none."""
    model = body.get("model", "")
    if not isinstance(model, str):
        raise ApiProblem(400, "model: expected a string", code="invalid_model")
    stream = body.get("stream") is True
    if api == "completions":
        return _text_prompt(body.get("prompt"), model, stream)
    if api == "responses":
        return _responses_prompt(body, model, stream)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiProblem(400, "messages: expected a list of at least one message")
    system = body.get("system") if api == "messages" else None
    if system:
        messages = [{"role": "system", "content": system}, *messages]
    return _message_prompt(messages, body.get("tools"), model, stream=stream)


def reply_print(message: Mapping[str, Any]) -> ReplyPrint:
    """Print of an assistant message that a prompt carries."""
    blocks = [b for b in _dicts(message.get("content")) if b.get("type") in {"text", "tool_use"}]
    if any(block["type"] == "tool_use" for block in blocks):
        text = b"".join(_text([block]) for block in blocks if block["type"] == "text")
        return ReplyPrint(digest(text), tuple(_tool_use(b) for b in blocks if "input" in b))
    calls = []
    for call in _dicts(message.get("tool_calls")):
        function = call.get("function")
        function = function if isinstance(function, dict) else call
        arguments = function.get("arguments")
        calls.append(
            (
                str(call.get("id") or ""),
                str(function.get("name") or ""),
                digest(str(arguments or "").encode("utf-8", "surrogatepass")),
            )
        )
    return ReplyPrint(digest(_text(message.get("content"))), tuple(calls))


def tool_results(messages: Sequence[Any]) -> Iterator[ToolResult]:
    """Yield the results among messages: ``tool`` messages, Anthropic's blocks, the Responses API's
    items.
    """
    for message in _dicts(messages):
        for block in _dicts(message.get("content")):
            if block.get("type") == "tool_result":
                size = len(_text(block.get("content")))
                used = str(block.get("tool_use_id") or "")
                yield ToolResult(used, size, block.get("is_error") is True)
        if message.get("role") == "tool":
            call_id, content = message.get("tool_call_id"), message.get("content")
        elif str(message.get("type", "")).endswith("_call_output"):
            call_id, content = message.get("call_id"), message.get("output")
        else:
            continue
        error = message.get("is_error") is True or message.get("status") == "error"
        yield ToolResult(str(call_id or ""), len(_text(content)), error)


def message_bytes(message: Any) -> bytes:
    """Return a message as canonical bytes."""
    if not isinstance(message, dict):
        return _encode(message)
    role = str(message.get("role") or message.get("type") or "")
    parts = [role.encode("utf-8", "surrogatepass"), _text(message.get("content"))]
    for key in sorted(message):
        if key not in {"role", "content", "cache_control"} and message[key] is not None:
            parts += [key.encode("utf-8", "surrogatepass"), _encode(message[key])]
    return b"\0".join(parts)


def _message_prompt(
    messages: list[Any], tools: Any, model: str, *, stream: bool, previous_response: str = ""
) -> Prompt:
    leading = 0
    while leading < len(messages) and _role(messages[leading]) in HEAD_ROLES:
        leading += 1
    pieces = [message_bytes(message) for message in messages]
    head = (_encode(tools) if tools else b"") + b"".join(pieces[:leading])
    text = PromptText(head, pieces[leading:], messages[leading:])
    return prompt_of(text, model, stream=stream, previous_response=previous_response)


def _responses_prompt(body: Mapping[str, Any], model: str, stream: bool) -> Prompt:
    given = body.get("input")
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list):
        raise ApiProblem(400, "input: expected a string or a list of items")
    instructions = body.get("instructions")
    system = [{"role": "system", "content": instructions}] if instructions else []
    previous = body.get("previous_response_id")
    return _message_prompt(
        [*system, *given],
        body.get("tools"),
        model,
        stream=stream,
        previous_response=previous if isinstance(previous, str) else "",
    )


def _text_prompt(given: Any, model: str, stream: bool) -> Prompt:
    tokens = None
    if isinstance(given, str):
        data = given.encode("utf-8", "surrogatepass")
    elif isinstance(given, list) and given and all(type(token) is int for token in given):
        tokens = len(given)
        try:
            data = array("q", given).tobytes()
        except OverflowError:
            raise ApiProblem(400, "prompt: a token id is out of range") from None
    elif isinstance(given, list) and given:
        data = _encode(given)  # a batch: one opaque prompt
    else:
        raise ApiProblem(400, "prompt: expected a string or a list of token ids")
    pieces = [data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)]
    return prompt_of(PromptText(b"", pieces), model, stream=stream, tokens=tokens)


def _text(content: Any) -> bytes:
    """Content as bytes: a text, or parts without their cache marks."""
    if content is None:
        return b""
    if isinstance(content, str):
        return content.encode("utf-8", "surrogatepass")
    if not isinstance(content, list):
        return _encode(content)
    found = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else None
        if isinstance(text, str):
            found.append(text.encode("utf-8", "surrogatepass"))
        elif isinstance(part, dict):
            found.append(_encode({k: v for k, v in part.items() if k != "cache_control"}))
        else:
            found.append(_encode(part))
    return b"".join(found)


def arguments_digest(arguments: Any) -> bytes:
    """Return a digest of tool arguments that are an object, whatever way its text was written."""
    return digest(_encode(arguments))


def _tool_use(block: Mapping[str, Any]) -> tuple[str, str, bytes]:
    """Print of a call as Anthropic's API carries it."""
    name = str(block.get("name") or "")
    return str(block.get("id") or ""), name, arguments_digest(block.get("input"))


def _role(message: Any) -> str:
    return str(message.get("role")) if isinstance(message, dict) else ""


def _dicts(items: Any) -> list[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, Sequence) else []

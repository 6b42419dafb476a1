"""One session while it is recorded: what each turn added, kept or dropped, in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from marsbench.core import Session, SharedPrefix, ToolCall, Turn, to_s
from marsbench.gateway.messages.prompt import Prompt, ReplyPrint, digest, reply_print, tool_results
from marsbench.gateway.messages.reply import ReplyFacts
from marsbench.gateway.recording.blocks import BlockChain, chain_of

SUBAGENT = "subagent"


@dataclass(slots=True)
class Note:
    """A finished turn, as a trace needs it."""

    prompt_tokens: int
    output_tokens: int
    ready_ps: int
    end_ps: int
    prompt: Prompt | None
    """Only until the next turn has been compared with it."""
    reply: ReplyPrint
    text_bytes: int
    output_bytes: int
    reasoning_bytes: int
    response_id: str
    estimated: bool
    call_ids: dict[int, str] = field(default_factory=dict)
    drop_context_to: int | None = None
    resent_tokens: int = -1
    """Of its output, in the next prompt; -1 = all (or nothing followed)."""
    tools: dict[int, ToolCall] = field(default_factory=dict)
    think_s: float = 0.0
    children: list[Session] = field(default_factory=list)


class Tape:
    """Notes of one session, turned into a trace line at its end."""

    def __init__(self, session_id: str, salt: bytes) -> None:
        self.session_id = session_id
        self.agent = ""
        self.model = ""
        self.arrival_s: float | None = None
        self.notes: list[Note] = []
        self.head: tuple[str, int] = "", 0
        """Id and bytes of the shared head."""
        self.head_broken = False
        """A later prompt did not start with it."""
        self.running: dict[tuple[int, int], int] = {}
        """Tool calls that run: (turn, call) -> start in picoseconds."""
        self.tool_end_ps = -1
        self._salt = salt
        self._chain: BlockChain | None = None

    def add(self, note: Note, prompt: Prompt) -> None:
        """Add a turn that has ended well."""
        chain = chain_of(prompt, self._salt)
        if self.notes:
            self._compare(self.notes[-1], note, prompt, chain)
        self._chain = chain
        self.notes.append(note)

    def tool_ended(self, index: int, call: ToolCall, at_ps: int) -> None:
        """Note that a tool call of the last turn is back."""
        if self.notes:
            self.notes[-1].tools[index] = call
            self.tool_end_ps = max(self.tool_end_ps, at_ps)

    def returned(self, prompt: Prompt, ready_ps: int) -> None:
        """Note that the next turn is ready: the gap is known, and what the tools gave back."""
        if not self.notes:
            return
        last = self.notes[-1]
        last.think_s = to_s(max(0, ready_ps - max(last.end_ps, self.tool_end_ps)))
        if last.prompt is None:
            return
        ratio = last.prompt_tokens / max(last.prompt.num_bytes, 1)
        found = {r.call_id: r for r in tool_results(prompt.after(last.prompt.mark()))}
        for index, call in last.tools.items():
            result = found.get(last.call_ids.get(index, ""))
            if result is not None:
                last.tools[index] = ToolCall(
                    call.name,
                    call.tool_class,
                    call.wall_s,
                    call.cpu_s,
                    call.cores,
                    round(result.num_bytes * ratio),
                    call.error or result.error,
                )

    def session(self, prefix_tokens: int) -> Session | None:
        """Return the trace line; None if no turn ended well."""
        if not self.notes:
            return None
        first = self.notes[0].prompt_tokens
        shared = not self.head_broken and 0 < prefix_tokens < first
        prefix = SharedPrefix(self.head[0], prefix_tokens) if shared else None
        turns = []
        before = 0
        for index, note in enumerate(self.notes):
            kept = note.drop_context_to
            if index == 0:
                new = first - (prefix_tokens if shared else 0)
            elif kept is not None:
                kept = max(kept, prefix_tokens if shared else 0)
                new = max(0, note.prompt_tokens - kept)
            else:
                new = note.prompt_tokens - before
            resent = note.output_tokens if note.resent_tokens < 0 else note.resent_tokens
            before = note.prompt_tokens + resent
            turns.append(_turn(note, new, resent, kept, is_last=note is self.notes[-1]))
        return Session(
            session_id=self.session_id,
            turns=tuple(turns),
            agent=self.agent,
            model=self.model,
            arrival_s=self.arrival_s,
            shared_prefix=prefix,
        )

    def _compare(self, last: Note, note: Note, prompt: Prompt, chain: BlockChain) -> None:
        """What of the last turn's context this prompt starts with."""
        assert last.prompt is not None
        assert self._chain is not None
        grown = note.prompt_tokens - last.prompt_tokens
        same_head = prompt.head_digest == last.prompt.head_digest
        chained = prompt.previous_response != "" and prompt.previous_response == last.response_id
        extends = chained or (same_head and prompt.extends(last.prompt.mark()))
        if extends and grown > 0:
            resent = last.output_tokens if chained else _resent(last, prompt)
            last.resent_tokens = max(0, min(resent, grown))
        else:
            common = chain.common_blocks(self._chain) * chain.block_bytes
            self.head_broken |= common + chain.block_bytes <= self.head[1]
            size = prompt.num_bytes if prompt.tokens is None else 8 * prompt.tokens
            kept = common * note.prompt_tokens // max(size, 1)
            note.drop_context_to = min(kept, last.prompt_tokens, note.prompt_tokens - 1)
        last.prompt = None


def _resent(last: Note, prompt: Prompt) -> int:
    """Output tokens of the last turn that the next prompt carries; all of them = verbatim."""
    assert last.prompt is not None
    if prompt.tokens is not None:
        return last.output_tokens  # token ids of the output are not in the reply: taken as sent
    if not prompt.read().messages:
        return last.output_tokens if _text_follows(last, prompt) else 0
    following = prompt.after(last.prompt.mark())
    message = following[0] if following else None
    if not isinstance(message, dict) or message.get("role") != "assistant":
        return 0
    carried = reply_print(message)
    same_calls = [c[1:] for c in carried.calls] == [c[1:] for c in last.reply.calls]
    if same_calls and carried.text == last.reply.text and not last.reasoning_bytes:
        return last.output_tokens
    share = _carried_bytes(message) / max(last.output_bytes, 1)
    return min(last.output_tokens - 1, round(share * last.output_tokens))


def _text_follows(last: Note, prompt: Prompt) -> bool:
    assert last.prompt is not None
    start = last.prompt.num_bytes
    following = b"".join(prompt.read().pieces)[start : start + last.text_bytes]
    return digest(following) == last.reply.text


def _carried_bytes(message: dict[str, object]) -> int:
    content = message.get("content")
    size = len(content.encode("utf-8", "surrogatepass")) if isinstance(content, str) else 0
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            size += len(str(function.get("name"))) + len(str(function.get("arguments")))
    return size


def _turn(note: Note, new: int, resent: int, kept: int | None, *, is_last: bool) -> Turn:
    tools: Sequence[ToolCall] = () if is_last else [note.tools[i] for i in sorted(note.tools)]
    if note.children:  # the call that started a sub-agent lasts as long as the sub-agent
        tools = [call for call in tools if call.tool_class != SUBAGENT]
    return Turn(
        new_input_tokens=new,
        output_tokens=note.output_tokens,
        resent_output=1.0 if resent >= note.output_tokens else resent / note.output_tokens,
        drop_context_to=kept,
        kept_prefix_tokens=kept,
        tools=tuple(tools),
        think_s=0.0 if is_last else note.think_s,
        children=tuple(note.children),
    )


def note_of(
    prompt: Prompt,
    reply: ReplyFacts,
    tokens: tuple[int, int],
    times_ps: tuple[int, int],
    *,
    estimated: bool,
) -> Note:
    """Make the note of a turn that has just ended: (prompt, output) tokens, (ready, end) times."""
    return Note(
        prompt_tokens=max(1, tokens[0]),
        output_tokens=max(1, tokens[1]),
        ready_ps=times_ps[0],
        end_ps=times_ps[1],
        prompt=prompt,
        reply=reply.print(),
        text_bytes=reply.text_bytes,
        output_bytes=reply.output_bytes,
        reasoning_bytes=reply.reasoning_bytes,
        response_id=reply.response_id,
        estimated=estimated,
        call_ids={index: call.call_id for index, call in enumerate(reply.calls)},
    )

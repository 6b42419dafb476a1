"""Makes turns of recorded prompt lengths, which their planned prompts have exactly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from marsbench.core import Session, SharedPrefix, ToolCall, Turn

MID_CONVERSATION = "+mid-conversation"
"""Suffix of ``Session.agent`` where the recording starts inside a longer conversation."""
PREFIX_MARGIN_TOKENS = 128
"""Kept off the shortest first prompt of a group: a task is at least this long (p5 is 199)."""


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One recorded LLM call, before it is known where its context comes from."""

    prompt_tokens: int
    output_tokens: int
    tools: tuple[ToolCall, ...] = ()
    think_s: float = 0.0
    children: tuple[Session, ...] = ()
    unchanged_tokens: int | None = None
    """Leading tokens equal to the previous prompt, where it was not simply extended."""
    shrunk_to_tokens: int | None = None
    """Leading tokens kept if this prompt is shorter than what came before (not used else)."""
    compacted: bool = False
    """Only the shared prefix survives before this call."""
    resent_tokens: int | None = None
    """Tokens of this output in the next prompt; None: all of them, if the next prompt has room."""
    rewritten: bool = False
    """The chat template changes the output before it is re-sent, so it is never verbatim."""


def fit_turns(calls: Sequence[RecordedCall], prefix_tokens: int = 0) -> tuple[Turn, ...]:
    """Return turns whose plan (``marsbench.core.plan_turns``) reproduces each ``prompt_tokens``.

    Growth first pays for re-sent output, the rest is new input. An answer recorded as empty
    counts as one token that is not re-sent: an engine cannot produce less. A prompt shorter than the one
    before keeps what is recorded as unchanged, or else the shared prefix.
    """
    turns: list[Turn] = []
    context = prefix_tokens
    previous: RecordedCall | None = None
    for index, call in enumerate(calls):
        following = calls[index + 1] if index + 1 < len(calls) else None
        resent, share = _resent(call, following)
        drop, kept = _dropped(call, previous, context, prefix_tokens)
        carried = context if drop is None else min(context, drop)
        turns.append(
            Turn(
                new_input_tokens=call.prompt_tokens - carried,
                output_tokens=max(1, call.output_tokens),
                resent_output=share,
                drop_context_to=drop,
                kept_prefix_tokens=kept,
                tools=call.tools,
                think_s=call.think_s,
                children=call.children,
            )
        )
        context = call.prompt_tokens + resent
        previous = call
    return tuple(turns)


def _resent(call: RecordedCall, following: RecordedCall | None) -> tuple[int, float]:
    """Return the re-sent tokens of a call's output and the share of the output that they are."""
    output = max(1, call.output_tokens)
    wanted = call.output_tokens if call.resent_tokens is None else call.resent_tokens
    growth = None if following is None else following.prompt_tokens - call.prompt_tokens
    if growth is not None and growth >= 0 and following is not None and not following.compacted:
        wanted = min(wanted, growth)
    if wanted >= output and not call.rewritten:
        return output, 1.0
    resent = max(0, min(wanted, output - 1))
    return resent, resent / output


def _dropped(
    call: RecordedCall, previous: RecordedCall | None, context: int, prefix_tokens: int
) -> tuple[int | None, int | None]:
    """Return ``drop_context_to`` and ``kept_prefix_tokens`` of a call."""
    if previous is None:
        return None, None
    prompt = call.prompt_tokens
    if call.compacted:
        return prefix_tokens, prefix_tokens
    kept = call.unchanged_tokens
    if prompt < context:
        known = call.shrunk_to_tokens if kept is None else kept
        floor = max(prefix_tokens, min(known or 0, prompt, context))
        return floor, floor
    if kept is not None and kept < previous.prompt_tokens:
        return context, kept
    return None, None


def build_session(
    session_id: str,
    calls: Sequence[RecordedCall],
    *,
    agent: str = "",
    model: str = "",
    arrival_s: float | None = None,
    prefix: SharedPrefix | None = None,
) -> Session:
    """Build a session of recorded calls, with the shared prefix cut to what every call leaves in place."""
    prefix = _fitting_prefix(prefix, calls)
    return Session(
        session_id=session_id,
        turns=fit_turns(calls, prefix.tokens if prefix else 0),
        agent=agent,
        model=model,
        arrival_s=arrival_s,
        shared_prefix=prefix,
    )


def _fitting_prefix(
    prefix: SharedPrefix | None, calls: Sequence[RecordedCall]
) -> SharedPrefix | None:
    """Cut a shared prefix to what no call changes, since it stays in place for the whole session."""
    if prefix is None:
        return None
    limits = [call.prompt_tokens - 1 for call in calls]
    limits += [call.unchanged_tokens for call in calls[1:] if call.unchanged_tokens is not None]
    tokens = min(prefix.tokens, *limits)
    return SharedPrefix(prefix.prefix_id, tokens) if tokens > 0 else None


def group_prefix(prefix_id: str, first_prompts: Iterable[int]) -> SharedPrefix | None:
    """Guess the system prompt and tools of sessions of one agent and model from their first prompts.

    An assumption: the shortest first prompt less a margin for its task. One session alone shows
    nothing that is shared.
    """
    known = list(first_prompts)
    if len(known) < 2 or min(known) <= PREFIX_MARGIN_TOKENS:
        return None
    return SharedPrefix(prefix_id, min(known) - PREFIX_MARGIN_TOKENS)

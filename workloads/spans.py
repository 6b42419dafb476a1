"""Puts timed spans of agent runs, as tracing tools log them, together to sessions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from marsbench.core import Session, SharedPrefix, ToolCall
from marsbench.errors import TraceError
from workloads.context import RecordedCall, build_session, group_prefix
from workloads.messages import PromptPart, unchanged_tokens

SUBAGENT = "subagent"
SPAN_PROVENANCE = {
    "agent": "recorded",
    "model": "recorded",
    "arrival_s": "derived: start of the session's first call, from the first session of the trace",
    "new_input_tokens": "derived: prompt growth less the re-sent output",
    "output_tokens": "recorded",
    "resent_output": "assumed: 1.0 where the prompt has room for the whole output",
    "drop_context_to": "derived: where logged messages differ from the last prompt's; else where "
    "the prompt shrinks, to the shared prefix",
    "tools.name": "recorded",
    "tools.class": "derived: from name and command",
    "tools.wall_s": "recorded: start to end; 0 for a call whose sub-agent is recorded",
    "tools.result_tokens": "derived: characters of the result / 3.4",
    "tools.error": "recorded",
    "think_s": "derived: end of a call, its tools and sub-agents to the start of the next call",
    "children": "derived: agents inside an agent",
    "shared_prefix": "assumed: shortest first prompt of agent and model less 128 tokens",
}
"""How sessions made of spans know their fields, unless an importer says otherwise."""


@dataclass(frozen=True, slots=True)
class AgentSpan:
    """One timed piece of an agent's run: an LLM call, a tool call, an agent, or a wrapper."""

    span_id: str
    parent_id: str | None
    kind: Literal["call", "tool", "agent", "other"]
    start_s: float
    end_s: float
    prompt_tokens: int = 0
    output_tokens: int = 0
    prompt: tuple[PromptPart, ...] = ()
    """Messages of a call's prompt, where they are logged."""
    model: str = ""
    agent: str = ""
    tool: ToolCall | None = None


@dataclass(slots=True)
class SpanTree:
    """Holds all spans of one session and tells which of its agents made them."""

    session_id: str
    where: str
    """Path of the file, for errors."""
    spans: dict[str, AgentSpan] = field(default_factory=dict)

    def threads(self) -> dict[str | None, list[AgentSpan]]:
        """Return calls and tools in the order of their start, by the sub-agent that made them.

        The agents with the fewest agents around them are the session's own, whose key is None.
        """
        callers = self._subagents()
        found: dict[str | None, list[AgentSpan]] = {None: []}
        for span in sorted(self.spans.values(), key=lambda s: (s.start_s, s.end_s)):
            if span.kind in {"call", "tool"}:
                found.setdefault(self._owner(span, callers), []).append(span)
        return found

    def children(self, thread: str | None) -> list[AgentSpan]:
        """Return the sub-agents that work directly for an agent, in the order of their start."""
        callers = self._subagents()
        found = [self.spans[name] for name in callers]
        found = [span for span in found if self._owner(span, callers) == thread]
        return sorted(found, key=lambda span: (span.start_s, span.span_id))

    def _subagents(self) -> set[str]:
        """Return the agents with LLM calls of their own that work inside the session's own agents."""
        calls = [span for span in self.spans.values() if span.kind == "call"]
        around = [[s for s in self.above(call) if s.kind == "agent"] for call in calls]
        own = max(1, min((len(agents) for agents in around), default=1))
        return {agents[0].span_id for agents in around if len(agents) > own}

    def _owner(self, span: AgentSpan, callers: set[str]) -> str | None:
        return next((s.span_id for s in self.above(span) if s.span_id in callers), None)

    def above(self, span: AgentSpan) -> Iterator[AgentSpan]:
        """Yield the spans around a span from the inside out; a span that contains itself is an error."""
        seen = {span.span_id}
        parent = self._parent(span)
        while parent is not None:
            if parent.span_id in seen:
                raise TraceError(f"span {parent.span_id!r} contains itself", path=self.where)
            seen.add(parent.span_id)
            yield parent
            parent = self._parent(parent)

    def _parent(self, span: AgentSpan) -> AgentSpan | None:
        return None if span.parent_id is None else self.spans.get(span.parent_id)


def span_sessions(trees: Iterable[SpanTree], prefix_id: str) -> Iterator[Session]:
    """Yield one session for each tree that has an LLM call, in the order of their first calls."""
    whole = [tree for tree in trees if any(s.kind == "call" for s in tree.spans.values())]
    starts = {id(tree): _first_call(tree).start_s for tree in whole}
    whole.sort(key=lambda tree: starts[id(tree)])
    first_prompts: dict[str, list[int]] = {}
    for tree in whole:
        first_prompts.setdefault(_group(tree), []).append(_first_call(tree).prompt_tokens)
    prefixes = {
        name: group_prefix(f"{prefix_id}/{name}", known) for name, known in first_prompts.items()
    }
    for tree in whole:
        arrival_s = starts[id(tree)] - starts[id(whole[0])]
        yield _session(tree, prefixes[_group(tree)], arrival_s)


def _first_call(tree: SpanTree) -> AgentSpan:
    """Return the first LLM call of the session's own agents."""
    return next(span for span in tree.threads()[None] if span.kind == "call")


def _group(tree: SpanTree) -> str:
    return f"{_agent_name(tree)}/{_first_call(tree).model}"


def _agent_name(tree: SpanTree) -> str:
    names = (span.agent for span in sorted(tree.spans.values(), key=lambda s: s.start_s))
    return next((name for name in names if name), "")


def _session(tree: SpanTree, prefix: SharedPrefix | None, arrival_s: float) -> Session:
    return build_session(
        tree.session_id,
        _calls(tree, tree.threads(), None, tree.session_id),
        agent=_agent_name(tree),
        model=_first_call(tree).model,
        arrival_s=arrival_s,
        prefix=prefix,
    )


def _calls(
    tree: SpanTree,
    threads: dict[str | None, list[AgentSpan]],
    thread: str | None,
    name: str,
) -> list[RecordedCall]:
    """Return the LLM calls of one agent, each with its tools, its sub-agents and the pause after it."""
    calls = [span for span in threads[thread] if span.kind == "call"]
    agents = tree.children(thread)
    wrappers = {above.span_id for agent in agents for above in tree.above(agent)}
    found: list[RecordedCall] = []
    for index, call in enumerate(calls):
        until = calls[index + 1].start_s if index + 1 < len(calls) else float("inf")
        tools = [span for span in threads[thread] if span.kind == "tool"]
        tools = [span for span in tools if call.start_s <= span.start_s < until]
        mine = [agent for agent in agents if call.start_s <= agent.start_s < until]
        ends = [call.end_s, *(span.end_s for span in tools)]
        ends += [span.end_s for agent in mine for span in threads[agent.span_id]]
        children = tuple(
            build_session(
                f"{name}/{index}.{number}",
                _calls(tree, threads, agent.span_id, f"{name}/{index}.{number}"),
                agent=agent.agent,
                model=call.model,
            )
            for number, agent in enumerate(mine)
        )
        recorded = RecordedCall(
            call.prompt_tokens,
            call.output_tokens,
            tuple(_tool(span, span.span_id in wrappers) for span in tools),
            think_s=max(0.0, until - max(ends)) if until < float("inf") else 0.0,
            children=children,
            unchanged_tokens=_unchanged(calls[index - 1] if index else None, call),
        )
        found.append(recorded)
    return found


def _unchanged(before: AgentSpan | None, call: AgentSpan) -> int | None:
    """Return what a prompt keeps of the one before, or None if it extends it or nothing is logged."""
    if before is None or not before.prompt or not call.prompt:
        return None
    return unchanged_tokens(before.prompt, call.prompt, call.prompt_tokens)


def _tool(span: AgentSpan, wraps_agent: bool) -> ToolCall:
    assert span.tool is not None
    if wraps_agent:  # its time is the sub-agent's, which is simulated
        return replace(span.tool, tool_class=SUBAGENT, wall_s=0.0)
    return replace(span.tool, wall_s=max(0.0, span.end_s - span.start_s))

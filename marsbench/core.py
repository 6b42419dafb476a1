"""The nouns every stage shares: sessions, turns, tool calls, and what a turn sends to an engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

PS_PER_S = 1_000_000_000_000
"""Engine time is counted in integer picoseconds, so sums and order are exact."""


def to_ps(seconds: float) -> int:
    """Seconds to integer picoseconds (rounded to the nearest)."""
    return round(seconds * PS_PER_S)


def to_s(picoseconds: int) -> float:
    """Integer picoseconds to seconds."""
    return picoseconds / PS_PER_S


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One tool execution, as recorded or generated."""

    name: str
    tool_class: str
    """One of read, edit, shell_read, shell_edit, git, script, test, build, plan, subagent, ..."""
    wall_s: float
    """Wall time on an uncontended machine, seconds."""
    cpu_s: float | None = None
    """CPU work, core-seconds; None if the trace does not say (see ToolDemand)."""
    cores: float = 1.0
    """How many cores the call can use at once."""
    result_tokens: int | None = None
    error: bool = False
    peak_bytes: int | None = None
    """Most memory of its processes together; None if the trace does not say."""


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Leading tokens (system prompt, tool definitions) that sessions have in common."""

    prefix_id: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One LLM call of a session and the tool calls it asks for."""

    new_input_tokens: int
    """Prompt tokens that were not in the context before: task text, tool results, framing."""
    output_tokens: int
    resent_output: float = 1.0
    """Share of this turn's output that the next prompt carries; 1.0 = verbatim (KV reusable)."""
    drop_context_to: int | None = None
    """Compaction before this turn: context tokens kept (shared prefix included)."""
    kept_prefix_tokens: int | None = None
    """With drop_context_to: leading tokens left untouched (default: the shared prefix)."""
    tools: tuple[ToolCall, ...] = ()
    """Parallel calls; the turn ends when all are back."""
    think_s: float = 0.0
    """Idle time (a person, or client overhead) after the tools, seconds."""
    children: tuple[Session, ...] = ()
    """Sub-agent sessions that run while this turn's tools do; the parent waits for them."""


@dataclass(frozen=True, slots=True)
class Session:
    """One agent task from its first LLM call to its last."""

    session_id: str
    turns: tuple[Turn, ...]
    agent: str = ""
    model: str = ""
    arrival_s: float | None = None
    shared_prefix: SharedPrefix | None = None


class Phase(StrEnum):
    """Where a session stands in its life (``marsbench.engine.life`` has the transitions)."""

    NEW = "new"
    """It has not arrived."""
    PENDING = "pending"
    """Its turn could run and has not been sent to the engine."""
    ENGINE = "engine"
    """Its turn was sent to the engine."""
    TOOL = "tool"
    """Its turn was answered; tools, sub-agents or a person have the next word."""
    DONE = "done"


class TurnPlan(NamedTuple):
    """What a turn sends to an engine, in tokens."""

    prompt_tokens: int
    reused_tokens: int
    """Leading tokens identical to the session's previous prompt + output (turn 0: shared prefix)."""
    output_tokens: int


def plan_turns(session: Session) -> list[TurnPlan]:
    """Prompt length and reusable prefix of each turn.

    The prompt of turn k is the shared prefix plus everything kept. Output that is re-sent
    verbatim extends the reusable prefix; output that the chat template rewrites
    (``resent_output < 1``) ends it at the previous prompt. A prompt always ends with at least
    one token that is new, so ``reused_tokens < prompt_tokens``.
    """
    prefix = session.shared_prefix.tokens if session.shared_prefix else 0
    plans: list[TurnPlan] = []
    context = prefix
    reused = prefix
    for turn in session.turns:
        if turn.drop_context_to is not None:
            kept = prefix if turn.kept_prefix_tokens is None else turn.kept_prefix_tokens
            context = max(prefix, min(context, turn.drop_context_to))
            reused = max(prefix, min(reused, kept, context))
        prompt = max(context + turn.new_input_tokens, prefix + 1)
        plans.append(TurnPlan(prompt, min(reused, prompt - 1), turn.output_tokens))
        resent = round(turn.resent_output * turn.output_tokens)
        context = prompt + resent
        reused = context if turn.resent_output >= 1.0 else prompt
    return plans


class HostView(Protocol):
    """Host memory for KV beside an engine, as a policy may read it.

    An engine with host memory copies the KV of prompts there by itself, and loads what a turn lost
    on the GPU back from there when the turn is scheduled. Nothing has to be asked for.
    """

    @property
    def num_blocks(self) -> int:
        """KV blocks that it can hold."""
        ...

    @property
    def used_blocks(self) -> int:
        """KV blocks that it holds, those still on their way there included."""
        ...

    def tokens(self, session: int) -> int:
        """Leading tokens of the prompt that a session submitted last which lie there, in whole
        chunks, those still on their way included. What a waiting turn would load is this less its
        prefix hit on the GPU.
        """
        ...

    def load_s(self, tokens: int) -> float:
        """Seconds that a copy of so many tokens to the GPU takes if nothing else is copied."""
        ...


@dataclass(frozen=True, slots=True)
class PolicyContext:
    """What any deployment knows about itself when a policy is built."""

    num_blocks: int
    """KV blocks of the engine."""
    block_size: int
    """Tokens per KV block."""
    max_num_batched_tokens: int
    max_num_seqs: int
    tool_cores: int
    """Cores of the tool pool; 0 = unlimited."""
    prefill_tokens_per_s: float
    """Prefill speed of the engine on short prompts, tokens/s."""
    prefill_s_per_pair: float = 0.0
    """Extra prefill seconds per (query, key) token pair: the quadratic term."""
    decode_step_s: float = 0.02
    """Duration of a decode step with one sequence, seconds."""
    host_blocks: int = 0
    """KV blocks that host memory holds beside the engine's; 0 = KV that leaves the GPU is lost."""
    seed: int = 0
    params: dict[str, float] = field(default_factory=dict)
    """Overrides of a policy's parameters by name (tuning, sensitivity, ablations)."""

    def prefill_s(self, new_tokens: int, prompt_tokens: int) -> float:
        """Seconds alone to prefill the last ``new_tokens`` of a prompt, the others being cached.

        Causal attention: each of them sees what is before it.
        """
        pairs = new_tokens * (prompt_tokens - new_tokens / 2)
        return new_tokens / self.prefill_tokens_per_s + pairs * self.prefill_s_per_pair

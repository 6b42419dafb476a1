"""What a user may say about live agents: ``driver.params`` of an experiment."""

from __future__ import annotations

from dataclasses import dataclass

from marsbench.agents.runner.agents import AGENTS
from marsbench.errors import ConfigError
from marsbench.registry import unknown

BRAINS = ("scripted", "model")


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """Which agents, and what they may cost. Raises ConfigError for what cannot work."""

    name: str = "openhands"
    """A kind of agent."""
    brain: str = "scripted"
    """``scripted``: recorded replies, while the engine generates as many tokens; ``model``: the
    engine's own."""
    scripts: str = ""
    """Folder with trajectories of an earlier run of the same agent, whose replies are played back;
    empty: the scripts that tasks ship with."""
    python: str = ""
    """Interpreter or folder of the agents' environment; empty: .venv-openhands."""
    task_timeout_s: float = 3600.0
    """From arrival; a task that takes longer has failed."""
    tool_timeout_s: float = 600.0
    """For one tool call."""
    workspace_mib: int = 0
    """Most that a workspace may hold (needs root); 0 = as much as the disk has."""
    max_turns: int = 100
    agents_per_worker: int = 32
    """Agents whose processes have one parent."""

    def __post_init__(self) -> None:
        if self.name not in AGENTS:
            raise unknown("agent", self.name, AGENTS)
        if self.brain not in BRAINS:
            raise ConfigError(f"driver.params.brain: {self.brain!r}; use scripted or model")
        for name in ("task_timeout_s", "tool_timeout_s", "max_turns", "agents_per_worker"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"driver.params.{name}: must be positive, got {getattr(self, name)}"
                )
        if self.workspace_mib < 0:
            raise ConfigError(
                f"driver.params.workspace_mib: must be 0 or more, got {self.workspace_mib}"
            )

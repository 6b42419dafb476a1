"""A system under test: engine flags plus the policies around it, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from marsbench.admission.base import (
    AdmissionPolicy,
    FirstReplica,
    Oversubscribe,
    RoutingPolicy,
    ToolDispatchPolicy,
    Unlimited,
)
from marsbench.core import PolicyContext, Session
from marsbench.scheduler.base import EngineOrder, NoRetention, RetentionPolicy, SchedulingPolicy


@dataclass(slots=True)
class Policies:
    """The policy objects of one cell. Those left out are the null policies (stock behaviour)."""

    scheduling: SchedulingPolicy = field(default_factory=EngineOrder)
    retention: RetentionPolicy = field(default_factory=NoRetention)
    admission: AdmissionPolicy = field(default_factory=Unlimited)
    tools: ToolDispatchPolicy = field(default_factory=Oversubscribe)
    routing: RoutingPolicy = field(default_factory=FirstReplica)

    def stock_engine(self) -> bool:
        """True if the engine runs without any policy of ours inside."""
        return type(self.scheduling) is EngineOrder and type(self.retention) is NoRetention


def stock(context: PolicyContext) -> Policies:
    """Null policies everywhere."""
    return Policies()


@dataclass(frozen=True, slots=True)
class System:
    """A named system. ``build`` is called once per cell."""

    name: str
    summary: str
    """One line for ``marsbench list`` (with the paper, where there is one)."""
    build: Callable[[PolicyContext], Policies] = stock
    engine: Mapping[str, int | str | bool] = field(default_factory=dict)
    """Overrides of EngineConfig fields, e.g. {"policy": "priority"}."""
    tunable: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Parameter grid searched by the ``NAME-tuned`` variant on the tuning split: names of engine
    fields or of ``PolicyContext.params``."""
    priority: str = "none"
    """What the client sends as vLLM's per-request priority: none | session_arrival |
    continuation_first. Only used with engine policy "priority"."""
    clairvoyant: Callable[[PolicyContext, Sequence[Session]], Policies] | None = None
    """Used instead of ``build``: sees the sessions of the cell. Labelled as an oracle."""
    tuned_on: str = ""
    """If not empty: this system is ``tuned_on``'s tuned variant."""

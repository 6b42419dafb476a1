"""Policies behind glass: they reach what the protocols promise, and nothing else.

``behind_glass`` wraps a policy. Whatever it is shown is replaced by a pane that has the members of
its protocol (``admission.base``, ``scheduler.base``) and refuses every other name, private ones
included; what it returns is unwrapped. A policy that works behind glass uses nothing that a real
system could not tell it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from marsbench.admission import base as control
from marsbench.core import HostView
from marsbench.errors import PolicyError
from marsbench.events import Event
from marsbench.routing import base as routing
from marsbench.scheduler import base as inside
from marsbench.system import Policies, is_null


class CheatError(PolicyError):
    """A policy reached for something that no protocol offers."""


def members(*protocols: type) -> frozenset[str]:
    """The public names of protocols."""
    return frozenset(
        name
        for protocol in protocols
        for name in (*vars(protocol), *getattr(protocol, "__annotations__", {}))
        if not name.startswith("_")
    )


PANES = {
    "turn": members(inside.TurnView),
    "engine": members(inside.EngineView),
    "retained": members(inside.RetainedView),
    "session": members(control.SessionView),
    "system": members(control.SystemView),
    "call": members(control.ToolCallView),
    "replica": members(control.SystemView, routing.RoutableReplica),
    "host": members(HostView),
}
SHOWN = {
    # method of a policy: what each of its arguments is
    "waiting_key": ("turn", "engine", ""),
    "running_key": ("turn", "engine", ""),
    "prefill_quantum": ("turn", "engine", ""),
    "on_scheduled": ("turn", "", "", ""),
    "victim_key": ("turn", "engine", ""),
    "on_turn_end": ("turn", "", "", "engine", ""),
    "review": ("retained", "engine", ""),
    "reclaim_key": ("retained", "engine", ""),
    "yields_to": ("retained", "turn", "engine", ""),
    "admit": ("session", "system", ""),
    "slots": ("system", ""),
    "next_call": ("call", "system", ""),
    "niceness": ("call", "system", ""),
    "route": ("session", "replica", ""),
}
INNER = {
    "waiting": "turn", "running": "turn", "active": "session", "replicas": "replica",
    "host": "host",
}  # fmt: skip
"""Members of views that are themselves views."""


class Pane:
    """A view with the members of its protocol only."""

    __slots__ = ("__behind", "__kind")

    def __init__(self, behind: object, kind: str) -> None:
        self.__behind = behind
        self.__kind = kind

    def __getattribute__(self, name: str) -> Any:
        # NOTE: names of this class are mangled, so a policy cannot spell them by accident.
        kind = object.__getattribute__(self, "_Pane__kind")
        if name not in PANES[kind]:
            raise CheatError(f"a policy asked a {kind} for {name!r}, which no {kind} view has")
        value = getattr(object.__getattribute__(self, "_Pane__behind"), name)
        if name in INNER:
            return shown(value, INNER[name])
        if callable(value):
            return lambda *args: value(*(uncovered(each) for each in args))
        return value

    def __eq__(self, other: object) -> bool:
        return uncovered(self) is uncovered(other)

    def __hash__(self) -> int:
        return id(uncovered(self))


def shown(value: Any, kind: str) -> Any:
    """A view, or a sequence of them, behind glass."""
    if value is None:
        return None
    if isinstance(value, Sequence):
        return [Pane(each, kind) for each in value]
    return Pane(value, kind)


def uncovered(value: Any) -> Any:
    """What stands behind a pane; anything else as it is."""
    if type(value) is Pane:
        return object.__getattribute__(value, "_Pane__behind")
    if type(value) is list:
        return [uncovered(each) for each in value]
    if type(value) is tuple:
        return tuple(uncovered(each) for each in value)
    return value


class BehindGlass:
    """A policy that sees panes."""

    def __init__(self, policy: object) -> None:
        self._policy = policy

    def on_event(self, event: Event) -> None:
        self._policy.on_event(event)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._policy, name)
        kinds = SHOWN.get(name)
        if kinds is None:
            return value
        method: Callable[..., Any] = value

        def call(*args: Any) -> Any:
            panes = [
                shown(each, kind) if kind else each for each, kind in zip(args, kinds, strict=True)
            ]
            return uncovered(method(*panes))

        return call


def glazed(policies: Policies) -> Policies:
    """The same policies behind glass, one wrapper per object."""

    @cache
    def wrap(policy: Any) -> Any:
        return policy if is_null(policy) else BehindGlass(policy)

    roles = ("scheduling", "retention", "admission", "tools", "routing")
    return replace(policies, **{role: wrap(getattr(policies, role)) for role in roles})

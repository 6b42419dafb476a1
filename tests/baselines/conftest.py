"""Builders of the views and events that policies see, with defaults for what a test ignores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from policy_views import Engine, Pin, Sess, Sys, Turn, context

from marsbench.core import PolicyContext
from marsbench.events import FIELDS, Event, Kind


@dataclass(frozen=True)
class Build:
    """All builders under one name."""

    turn: Callable[..., Any] = Turn
    engine: Callable[..., Any] = Engine
    pin: Callable[..., Any] = Pin
    session: Callable[..., Any] = Sess
    system: Callable[..., Any] = Sys
    context: Callable[..., PolicyContext] = field(default_factory=lambda: context)
    event: Callable[..., Event] = field(default_factory=lambda: event)


def event(kind: Kind, time_s: float, session: int = 0, turn: int = 0, **payload: int) -> Event:
    """An event of the stream; fields left out are 0 (parent: -1)."""
    defaults = {"parent": -1, "parent_turn": -1}
    names = FIELDS[kind]
    assert set(payload) <= set(names), f"{kind.name} has {names}"
    args = tuple(payload.get(name, defaults.get(name, 0)) for name in names)
    return Event(time_s, kind, session, turn, -1, args)


@pytest.fixture
def build() -> Build:
    return Build()

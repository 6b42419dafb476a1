"""Tool calls: their demand on CPU cores, and models of a pool of tool cores in virtual time."""

from __future__ import annotations

import importlib

from marsbench.registry import unknown
from marsbench.tools.base import CallOutcome, ToolAssumptions, ToolDemand, ToolModel, demand_of
from marsbench.tools.executor import Execution, ToolExecutor

__all__ = [
    "TOOL_EXECUTORS",
    "TOOL_MODELS",
    "CallOutcome",
    "Execution",
    "ToolAssumptions",
    "ToolDemand",
    "ToolExecutor",
    "ToolModel",
    "demand_of",
    "make_tool_executor",
    "make_tool_model",
]

TOOL_MODELS: dict[str, str] = {
    "recorded": "marsbench.tools.recorded.Recorded",
    "modelled": "marsbench.tools.modelled.Modelled",
}


TOOL_EXECUTORS: dict[str, str] = {
    "process": "marsbench.tools.process.Process",
    "docker": "marsbench.tools.docker.Docker",
}
"""Tools that really run (``ToolExecutor``), for live engines."""


def make_tool_executor(name: str, cores: int) -> ToolExecutor:
    """A new executor by its name in ``TOOL_EXECUTORS``; ``cores`` 0 = not pinned."""
    if name not in TOOL_EXECUTORS:
        raise unknown("tool executor", name, TOOL_EXECUTORS)
    module, _, attribute = TOOL_EXECUTORS[name].rpartition(".")
    executor: ToolExecutor = getattr(importlib.import_module(module), attribute)(cores)
    return executor


def make_tool_model(name: str, cores: int) -> ToolModel:
    """A new tool model by its name in ``TOOL_MODELS``; ``cores`` 0 = unlimited."""
    if name not in TOOL_MODELS:
        raise unknown("tool model", name, TOOL_MODELS)
    module, _, attribute = TOOL_MODELS[name].rpartition(".")
    model: ToolModel = getattr(importlib.import_module(module), attribute)(cores)
    return model

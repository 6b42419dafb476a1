"""Tool calls: their demand on CPU cores, and models of a pool of tool cores in virtual time."""

from __future__ import annotations

import importlib

from marsbench.registry import unknown
from marsbench.tools.base import Outcome, ToolAssumptions, ToolDemand, ToolModel, demand_of

__all__ = [
    "TOOL_MODELS",
    "Outcome",
    "ToolAssumptions",
    "ToolDemand",
    "ToolModel",
    "demand_of",
    "make_tool_model",
]

TOOL_MODELS: dict[str, str] = {
    "recorded": "marsbench.tools.recorded.Recorded",
    "modelled": "marsbench.tools.modelled.Modelled",
}


def make_tool_model(name: str, cores: int) -> ToolModel:
    """A new tool model by its name in ``TOOL_MODELS``; ``cores`` 0 = unlimited."""
    if name not in TOOL_MODELS:
        raise unknown("tool model", name, TOOL_MODELS)
    module, _, attribute = TOOL_MODELS[name].rpartition(".")
    model: ToolModel = getattr(importlib.import_module(module), attribute)(cores)
    return model

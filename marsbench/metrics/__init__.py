"""Metrics over a cell's tables: declared once with name, unit, direction and formula."""

from __future__ import annotations

from marsbench.metrics.base import ALPHAS, CellFacts, Cut, Metric
from marsbench.metrics.summary import catalogue, summarise

__all__ = ["ALPHAS", "CellFacts", "Cut", "Metric", "catalogue", "summarise"]

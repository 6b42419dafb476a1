"""Fixtures of the tests of live agents."""

from agents_cell import run_cell

__all__ = ["run_cell"]

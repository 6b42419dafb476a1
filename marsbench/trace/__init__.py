"""Traces: where sessions come from, in which formats, and how they are checked and described."""

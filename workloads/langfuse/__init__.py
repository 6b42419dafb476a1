"""Langfuse exports: traces with their observations."""

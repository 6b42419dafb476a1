"""Agentic dialects of the Mooncake trace: requests with session ids, dependencies and tool waits."""

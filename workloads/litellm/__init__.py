"""Logs of the LiteLLM gateway."""

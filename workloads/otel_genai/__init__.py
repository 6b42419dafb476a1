"""OpenTelemetry spans with the GenAI conventions."""

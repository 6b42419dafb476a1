"""Runs in the formats of other tools: timelines for Perfetto, spans and metrics for OpenTelemetry."""

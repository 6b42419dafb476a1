"""Weka kv-cache-tester traces: Claude Code sessions with hashes of 64-token prompt blocks."""

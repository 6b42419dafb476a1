"""Applied Compute's agentic rows (trie): lengths and tool latencies of a session in one row."""

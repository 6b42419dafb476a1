"""TraceLab round traces: one row an LLM call, with token counts and timed tool calls."""

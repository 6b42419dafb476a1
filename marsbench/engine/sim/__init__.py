"""The event-driven engine model: vLLM V1's scheduling and paging, in runs instead of blocks."""

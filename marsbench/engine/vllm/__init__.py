"""vLLM's own scheduler and KV-cache manager, driven in virtual time or inside a live server."""

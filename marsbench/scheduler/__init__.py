"""Scheduling inside the engine: order of turns, prefill quanta, victims, and KV retention."""

"""OpenHands V0: evaluation output.jsonl and trajectories of events with integer ids."""

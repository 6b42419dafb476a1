"""SWE-smith trajectories: SWE-agent 1.x on synthetic tasks."""

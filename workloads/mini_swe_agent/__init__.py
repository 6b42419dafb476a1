"""mini-SWE-agent trajectories (.traj.json), from bare message lists to format 1.1."""

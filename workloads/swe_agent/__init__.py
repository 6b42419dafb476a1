"""SWE-agent trajectories (.traj) of all generations: 0.x, 1.x, and history-only demonstrations."""

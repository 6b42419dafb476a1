"""Repository tasks for live agents that run anywhere: packages of ours with a bug put in by procedure."""

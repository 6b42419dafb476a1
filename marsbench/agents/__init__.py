"""Live agents: tasks that real agents solve with real tools, around any engine, as a run folder."""

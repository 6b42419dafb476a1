"""Session files of the Codex command line."""

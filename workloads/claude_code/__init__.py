"""Claude Code transcripts: session JSONL files, project directories, and task bundles."""

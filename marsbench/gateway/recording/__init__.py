"""What is written of the traffic: a trace of lengths, reuse and times, and a run folder; never text."""

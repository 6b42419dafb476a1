"""SWE-bench instances as tasks for live agents, in the containers that are published for them."""

"""Live engines: real servers over HTTP, on the wall clock, with the records of the simulator."""

"""Joins a control plane and the scheduler inside a live engine over ZeroMQ."""

"""Admission: which pending turns enter the engine, on which replica, and tool slots."""

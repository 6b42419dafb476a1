"""A run's events published over ZeroMQ while they happen, and the observer that takes them in.

``target`` names a stream to the cells, ``cell`` sends what happens in one, ``hub`` publishes what all
send, ``observer`` is the other end, ``messages`` what goes over the wire.
"""

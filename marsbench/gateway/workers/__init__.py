"""Several HTTP processes before one control plane: ``marsbench serve --workers N``.

The main process owns sessions, policies, slots, recorders, metrics and the plug-ins' streams, as it does
alone. Each worker accepts connections on the same port, reads requests and carries the bytes of turns; at
the points where policy matters it asks the main process over a Unix socket (``wire``).
"""

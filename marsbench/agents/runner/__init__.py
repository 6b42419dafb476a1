"""The agents' side: runs in an environment of its own (Python 3.12 or newer), with nothing of
marsbench but this folder; the standard library and the agents' packages are all that it imports.
"""

"""``python -m marsbench.agents.runner AGENT [FOLDER]``: a worker that speaks the protocol on its standard
pipes, and removes FOLDER if its driver ends without a word.
"""

from __future__ import annotations

import os
import signal
import sys

from marsbench.agents.runner.worker import Worker


def main() -> None:
    """Keep the pipes for the protocol; whatever prints, prints to the log."""
    orders, reports = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides when we end
    Worker(sys.argv[1], orders, reports, *sys.argv[2:3]).run()


if __name__ == "__main__":
    main()

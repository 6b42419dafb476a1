"""Settings of all tests."""

from __future__ import annotations

import signal

from hypothesis import settings

settings.register_profile("marsbench", deadline=None)  # how long an example takes is not asserted
settings.load_profile("marsbench")

# Some tests interrupt commands. A shell that starts us in the background makes SIGINT ignored, and
# every process we start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

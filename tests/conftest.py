"""Settings of all tests."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("marsbench", deadline=None)  # how long an example takes is not asserted
settings.load_profile("marsbench")

"""Whose fault an exception is: a policy's own code, which its author can repair, or the suite's."""

from __future__ import annotations

from marsbench.errors import PolicyError, raised_in
from marsbench.system import System

SUITE = __name__.partition(".")[0]


def policy_error(error: Exception, system: System) -> PolicyError | None:
    """Return one line about an exception that came out of the package of a system's policies.

    None if no line of that package was being executed: then the suite itself is broken, and the
    exception must not be taken for a fault of the policy.
    """
    builder = system.clairvoyant or system.build
    package = builder.__module__.partition(".")[0]
    if package == SUITE:
        return None
    what = raised_in(error, lambda frame: _package(frame.f_globals) == package)
    return PolicyError(f"a policy of system {system.name!r} raised {what}") if what else None


def _package(names: dict[str, object]) -> str:
    return str(names.get("__name__", "")).partition(".")[0]

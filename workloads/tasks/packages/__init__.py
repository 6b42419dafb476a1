"""The packages that tasks are made of, each as a repository of its own, and how they are tested."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Package:
    """One package."""

    name: str
    summary: str
    test: str = "python -m pytest -q"
    """Shell command of its test suite."""
    build: str = ""
    """Shell command of its build, if it has one."""
    pytest: str = "python -m pytest"
    """How single tests are run, whatever runs the suite."""
    test_cpu_s: float = 0.6
    """CPU seconds of the suite alone, start of Python included."""
    cores: float = 1.0
    """How many cores it can use."""
    build_cpu_s: float = 0.0

    @property
    def cpu_s(self) -> float:
        """CPU seconds of the suite, and of the build if there is one."""
        return self.test_cpu_s + self.build_cpu_s


ENV = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
"""For the suites: plug-ins that happen to be installed are none of theirs, and slow to import."""
UNITTEST = "PYTHONPATH=src python -m unittest discover -s tests"

PACKAGES = {
    package.name: package
    for package in (
        Package("ledger", "double-entry bookkeeping", test=UNITTEST, test_cpu_s=0.2),
        Package("cronline", "crontab lines", test=UNITTEST, test_cpu_s=0.2),
        Package("minitpl", "a template language"),
        Package("kvlog", "an append-only store"),
        Package("routes", "graph algorithms", test_cpu_s=2.0),
        Package(
            "heatgrid",
            "a simulation in strips",
            test="python -m pytest -q -p xdist -n 2",
            test_cpu_s=4.0,
            cores=2.0,
        ),
        Package("bulksort", "sorting beyond memory", test_cpu_s=8.0),
        Package("assetpack", "a compressing bundler", build="python build.py", build_cpu_s=26.0),
    )
}
"""Name -> package."""

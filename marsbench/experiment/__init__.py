"""Experiments: the only place that wires trace, arrival, policies, engine, tools and metrics.

``runner.run_experiment`` turns an ``ExperimentConfig`` into a run folder. On the way ``lab``
measures what cells need: capacity (the unit of load), ideal latencies, tuned parameters.
"""

from __future__ import annotations

from marsbench.experiment.runner import RunResult, run_experiment

__all__ = ["RunResult", "run_experiment"]

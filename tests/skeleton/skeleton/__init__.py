"""A plug-in package for marsbench with one part of each kind, as small as it can be.

Copy it, rename it, and announce it in your own ``pyproject.toml``::

    [project.entry-points."marsbench.plugins"]
    skeleton = "skeleton"

Each table is name -> dotted path; the modules behind the paths are imported when they are used.
"""

SYSTEMS = {"skeleton-lifo": "skeleton.policy.LIFO"}
WORKLOADS = {"skeleton-pairs": "skeleton.workload.PAIRS"}
IMPORTERS = {"skeleton-csv": "skeleton.importer.IMPORTER"}
ENGINES = {"skeleton-sim": "skeleton.engine.ENGINE"}
METRICS = {"skeleton_short_turns": "skeleton.metric.skeleton_short_turns"}
FIGURES = {"skeleton_sessions": "skeleton.figure.draw"}
COMMANDS = {"skeleton": "skeleton.command.skeleton"}

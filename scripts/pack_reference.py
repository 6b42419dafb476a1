#!/usr/bin/env python3
"""Copies a run folder's tables for keeping in the repository: scripts/pack_reference.py RUN REFERENCE

The same rows as the run's, in one group and compressed as far as it goes: half the size.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def main() -> int:
    """Copy config, summary and tables."""
    if len(sys.argv) != 3:
        print("usage: scripts/pack_reference.py RUN REFERENCE", file=sys.stderr)
        return 2
    run, reference = Path(sys.argv[1]), Path(sys.argv[2])
    reference.mkdir(parents=True, exist_ok=True)
    for name in ("config.yaml", "summary.json"):
        shutil.copy(run / name, reference / name)
    for name in ("events", "sessions", "turns"):
        table = pq.read_table(run / f"{name}.parquet")
        reals = [field.name for field in table.schema if pa.types.is_floating(field.type)]
        pq.write_table(
            table,
            reference / f"{name}.parquet",
            compression="zstd",
            compression_level=19,
            row_group_size=len(table),
            use_dictionary=[name for name in table.column_names if name not in reals],
            use_byte_stream_split=reals,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The claims script against numbers worked out by hand."""

from __future__ import annotations

import json

import claims_table as script
import pandas as pd


def run_folder(path, cells):
    """A run folder with these cells: (system, seed, load, tool cores, mean latency)."""
    path.mkdir()
    rows = [
        {"workload": "w", "profile": "p", "tool_cores": cores, "load": load, "system": system,
         "seed": seed,
         "metrics": {"session_latency_s": {"mean": mean, "p90": mean, "p95": mean, "p99": mean},
                     "session_goodput_per_s": {"3": 1.0}, "sessions_per_s": 1.0,
                     "prefix_cache_hit_rate": 0.5, "jain_slowdown": 0.9}}
        for system, seed, load, cores, mean in cells
    ]  # fmt: skip
    (path / "summary.json").write_text(json.dumps({"cells": rows}))
    return path


def test_seeds_are_averaged_before_the_ratio(tmp_path):
    """MARS 10 and 30 s, vllm 60 and 20 s: 40/20 = 2."""
    cells = [("mars", 0, 1.0, 8, 10.0), ("mars", 1, 1.0, 8, 30.0),
             ("vllm", 0, 1.0, 8, 60.0), ("vllm", 1, 1.0, 8, 20.0)]  # fmt: skip
    rows = script.ratios(script.read([run_folder(tmp_path / "r", cells)]))
    assert rows["mean_s_ratio"].tolist() == [2.0]


def test_claims_count_cells_won_and_leave_out_ablations_and_those_who_know_the_future(tmp_path):
    """Cell 0.8: others 8 and 20 against 10 -> 0.8. Cell 1.0: 20 -> 2. Won: half; geomean sqrt(1.6).
    The ablation (1 s), the oracle (5 s) and the window with hindsight (2 s) do not count.
    """
    cells = [("mars", 0, 0.8, 8, 10.0), ("vllm-tuned", 0, 0.8, 8, 8.0), ("other", 0, 0.8, 8, 20.0),
             ("mars", 0, 1.0, 8, 10.0), ("vllm-tuned", 0, 1.0, 8, 20.0),
             ("mars-no-retention", 0, 1.0, 8, 1.0), ("oracle", 0, 1.0, 8, 5.0),
             ("static-best", 0, 1.0, 8, 2.0)]  # fmt: skip
    text = script.claims(script.ratios(script.read([run_folder(tmp_path / "r", cells)])))
    assert "in 50% of 2 cells, within 2 % of the best in 50%; at worst 0.800" in text
    assert "at load >= 0.8: geometric mean 1.26x" in text
    assert "vllm-tuned, loads 0.5-1.2: geometric mean 1.26x, highest 2.00x" in text
    assert "tool cores in plenty, load >= 0.8: MARS 2.00x" in text
    assert "the oracle 4.00x" in text


def test_the_preview_counts_as_a_system():
    """It is what its authors released; ours with a part taken away is not."""
    rows = pd.DataFrame({"system": ["mars-preview", "mars-preview-tuned", "mars-no-lending"]})
    assert script.is_ablation(rows).tolist() == [False, False, True]

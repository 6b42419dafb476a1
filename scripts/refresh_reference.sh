#!/usr/bin/env bash
# Makes results/reference/ again from the stored configs, with the installed marsbench.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
for reference in results/reference/*/; do
  run="out/reference/$(basename "$reference")"
  "$bin/marsbench" run "${reference}config.yaml" --overwrite --out "$run"
  "$bin/marsbench" report "$run"
  cp "$run/config.yaml" "$run/summary.json" "$reference"
  cp "$run/figures/latency_vs_load.png" "$reference"
done

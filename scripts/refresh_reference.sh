#!/usr/bin/env bash
# Makes results/reference/ again from the stored configs, with the installed marsbench.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
for config in results/reference/*/config.yaml; do
  reference=$(dirname "$config")/
  run="out/reference/$(basename "$reference")"
  "$bin/marsbench" run "$config" --overwrite --out "$run"
  "$bin/marsbench" report "$run"
  cp "$run/config.yaml" "$run/summary.json" "$reference"
  cp "$run/figures/latency_vs_load.png" "$reference"
done

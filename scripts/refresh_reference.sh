#!/usr/bin/env bash
# Makes results/reference/ again from the stored configs, with the installed marsbench:
#   scripts/refresh_reference.sh [demo|small|gate]...
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-.venv/bin}
[ $# -gt 0 ] || set -- demo small gate
for name in "$@"; do
  reference="results/reference/$name" run="out/reference/$name"
  "$bin/marsbench" run "$reference/config.yaml" --overwrite --out "$run"
  case $name in
  small) "$bin/python" scripts/pack_reference.py "$run" "$reference" ;;
  *) cp "$run/config.yaml" "$run/summary.json" "$reference" ;;
  esac
  if [ "$name" = demo ]; then
    "$bin/marsbench" report "$run"
    cp "$run/figures/latency_vs_load.png" "$reference"
  fi
done

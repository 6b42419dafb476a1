#!/usr/bin/env bash
# Are all results as results/reference/gate says, to the last digit? Every registered system, in virtual time.
# A change that moves them on purpose runs scripts/refresh_reference.sh gate and says why in CHANGELOG.md.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-.venv/bin}
"$bin/marsbench" run results/reference/gate/config.yaml --overwrite --quiet --jobs "$(nproc)" --out out/gate > /dev/null
"$bin/marsbench" check out/gate --against results/reference/gate --exact "$@"

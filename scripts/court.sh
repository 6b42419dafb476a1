#!/usr/bin/env bash
# The runs behind results/reference/court: TRACE=FILE scripts/court.sh [SET]...
#   others   every online system but MARS, two seeds       close  a third seed of those that are close
#   tuned    the strongest with tuned parameters, three seeds
#   mars     MARS and the oracle, five seeds               ablations  MARS with parts taken away, two seeds
#   table    results/reference/court from finished runs
# Without SET: all of these, about two hours on two cores. Environment: OUT (runs/court), JOBS (2),
# MARSBENCH (marsbench), PYTHON (python3),
# PLACES, CLOSE, TUNED (some of the workloads and systems below). An interrupted set goes on where it was.
# A quarter to a half faster with the compiled core: scripts/compile_core.py, export MARSBENCH_COMPILED=...
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/court} JOBS=${JOBS:-2} MARSBENCH=${MARSBENCH:-marsbench} PYTHON=${PYTHON:-python3}
X=scripts/experiments/court.yaml
CLOSE=${CLOSE:-vllm session-fcfs thunderagent progress-ttl continuum}
TUNED=${TUNED:-static-tuned vllm-priority-tuned thunderagent-tuned continuum-tuned}
ABLATIONS="mars-no-slo mars-no-control-plane mars-no-kv-signal mars-no-coordinator mars-no-retention mars-no-lending"

places() { # NAME ARGUMENTS of every workload (of those in PLACES, if that is set)
  echo "trace -w ${TRACE:?set TRACE to a recorded trace} --tool-cores 16 ${LOADS:-}"
  echo "hybrid -w hybrid --tool-cores 16 --load 0.9 --load 1.2"
  echo "terminal-bench -w terminal-bench --tool-cores 48 --load 1.2"
}

systems() { printf ' -s %s' "$@"; }

run() { # SET ARGUMENTS: on every workload
  local set=$1 name place; shift
  mkdir -p "$OUT"
  while read -r name place; do
    [[ " ${PLACES:-$name} " == *" $name "* ]] || continue
    # shellcheck disable=SC2086
    $MARSBENCH run $X $place "$@" --jobs "$JOBS" --resume -q -o "$OUT/$set-$name" > "$OUT/$set-$name.log" 2>&1 ||
      { echo "$set-$name: failed, see $OUT/$set-$name.log" >&2; exit 1; }
    echo "$set-$name: done"
  done < <(places)
}

[ $# -gt 0 ] || set -- others close tuned mars ablations table
for set in "$@"; do
  # shellcheck disable=SC2046,SC2086
  case $set in
  others) run others ;;
  close) run close $(systems $CLOSE) --seeds 1 -c first_seed=2 ;;
  tuned) for name in $TUNED; do run "$name" $(systems "$name") --seeds 3; done ;;
  mars)
    run mars $(systems mars oracle) --seeds 5 ;;
  ablations) LOADS="--load 0.9 --load 1.2" run ablations $(systems $ABLATIONS) ;;
  table) $PYTHON scripts/court_table.py "$OUT"/*/ --out results/reference/court ;;
  *) echo "$0: no set '$set'; see the first lines of this file" >&2; exit 2 ;;
  esac
done

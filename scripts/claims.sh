#!/usr/bin/env bash
# The runs behind results/reference/claims, two at a time: scripts/claims.sh SET... [--list]
#   generated  four workloads, four deployments, seven loads     scarce     few tool cores
#   tuned      baselines with tuned parameters, on two of these  static     the best fixed window, on the same two
#   ablations  MARS with parts taken away                        core       cells on vLLM's own scheduler
#   trace, trace-profiles, trace-scarce                          a recorded trace, TRACE=FILE
#   tables     results/reference/claims/*.md from finished runs
# Environment: OUT (runs/claims), JOBS (runs at a time, 2), MARSBENCH (marsbench), PYTHON (python3), ARGS
# (more options for every run, such as "--seeds 1"). An interrupted set goes on where it was.
# A quarter to a half faster with the compiled core: scripts/compile_core.py, export MARSBENCH_COMPILED=...
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/claims} JOBS=${JOBS:-2} MARSBENCH=${MARSBENCH:-marsbench} PYTHON=${PYTHON:-python3}
X=scripts/experiments
WORKLOADS="swe-bench long-tail-gap terminal-bench hybrid"
H100=h100-nvl/qwen3-coder-30b-a3b
H200=h200-nvl/gpt-oss-120b

trace() { echo "${TRACE:?set TRACE to a recorded trace}"; }

cores() { # tool cores in plenty
  case $1 in terminal-bench | long-tail-gap) echo 48 ;; *) echo 16 ;; esac
}

sessions() { # the H200 holds three to four times as many sessions: 100 are over before it is full
  case $1 in h200*) echo 200 ;; *) echo 100 ;; esac
}

each_end() { # NAME FILES: a run for each workload on the paper's two ends
  for w in $WORKLOADS; do
    for p in $H100 $H200; do
      echo "$1-$w-${p%%-*} $2 -w $w --profile $p --tool-cores $(cores "$w") --sessions $(sessions "$p")"
    done
  done
}

runs() { # NAME ARGUMENTS of every run of a set
  case $1 in
  generated)
    for w in $WORKLOADS; do
      for gpu in h100 h200; do
        echo "generated-$w-$gpu $X/claims.yaml -w $w --tool-cores $(cores "$w") --sessions $(sessions $gpu)" \
          "--profile $gpu-nvl/qwen3-coder-30b-a3b --profile $gpu-nvl/gpt-oss-120b"
      done
    done ;;
  static) each_end static "$X/claims.yaml $X/claims-static.yaml" ;;
  tuned) each_end tuned "$X/claims.yaml $X/claims-tuned.yaml" ;;
  scarce)
    local files="$X/claims.yaml $X/claims-scarce.yaml"
    while read -r w p c; do
      echo "scarce-$w-${p%%-*} $files -w $w --profile $p --tool-cores $c --sessions $(sessions "$p")"
    done <<END
swe-bench $H100 2
swe-bench $H200 7
long-tail-gap $H100 10
long-tail-gap $H200 24
terminal-bench $H100 9
terminal-bench $H200 20
hybrid $H100 2
hybrid $H200 8
END
    ;;
  trace) # a seed at a time, so that several run side by side
    for s in 0 1 2 3 4; do
      echo "trace-$s $X/claims-trace.yaml -w $(trace) --seeds 1 -c first_seed=$s"
    done ;;
  trace-profiles)
    for p in h200-nvl/qwen3-coder-30b-a3b h100-nvl/gpt-oss-120b $H200; do
      for s in 0 1 2 3 4; do
        echo "trace-profiles-${p/\//-}-$s $X/claims-trace.yaml -w $(trace) --profile $p --seeds 1 -c first_seed=$s"
      done
    done ;;
  trace-scarce)
    local files="$X/claims-trace.yaml $X/claims-scarce.yaml"
    echo "trace-scarce-h100 $files -w $(trace) --sessions 100 --profile $H100 --tool-cores 2"
    echo "trace-scarce-h200 $files -w $(trace) --sessions 100 --profile $H200 --tool-cores 8" ;;
  ablations)
    for w in swe-bench hybrid; do echo "ablations-$w $X/ablations.yaml -w $w"; done ;;
  core)
    for e in sim vllm-core; do echo "core-$e $X/claims-core.yaml --engine $e"; done ;;
  *) echo "$0: no set '$1'; see the first lines of this file" >&2; exit 2 ;;
  esac
}

tables() {
  local into=results/reference/claims
  table() { # NAME SET...: of the runs that exist
    local name=$1 found=(); shift
    for set in "$@"; do found+=("$OUT/$set"-*/); done
    [ ${#found[@]} -eq 0 ] || $PYTHON scripts/claims_table.py "${found[@]}" --out $into --name "$name"
  }
  shopt -s nullglob
  table claims generated static tuned
  table scarce scarce
  table trace trace-[0-9]
  table trace-profiles trace-profiles
  table trace-scarce trace-scarce
  table ablations ablations
  [ ! -d "$OUT/core-vllm-core" ] ||
    $PYTHON -m marsbench validate "$OUT/core-sim" "$OUT/core-vllm-core" > $into/vllm-core.md
}

list=""
sets=()
for word in "$@"; do case $word in --list) list=1 ;; *) sets+=("$word") ;; esac; done
[ ${#sets[@]} -gt 0 ] || { sed -n '2,10p' "$0" >&2; exit 2; }
for set in "${sets[@]}"; do
  if [ "$set" = tables ]; then tables; continue; fi
  lines=$(runs "$set")
  if [ -n "$list" ]; then echo "$lines"; continue; fi
  mkdir -p "$OUT"
  export OUT MARSBENCH ARGS=${ARGS:-}
  # shellcheck disable=SC2016
  echo "$lines" | xargs -P "$JOBS" -L 1 bash -c '
    name=$0
    if $MARSBENCH run "$@" $ARGS --resume -q -o "$OUT/$name" > "$OUT/$name.log" 2>&1
    then echo "$name: done"; else echo "$name: failed, see $OUT/$name.log" >&2; exit 1; fi'
done

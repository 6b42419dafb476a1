# Everything from a fresh clone: `make demo` needs Python 3.11 or newer and a package index.
PYTHON ?= python3
BIN := .venv/bin
DEMO := out/demo

.PHONY: setup demo check docs test clean

.venv/base: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --editable .
	touch $@

.venv/dev: .venv/base
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[dev]"
	touch $@

setup: .venv/dev            ## the development environment

demo: .venv/base            ## systems compared on generated SWE-bench sessions
	$(BIN)/marsbench run --workload swe-bench --system vllm --system vllm-tuned --system continuum \
	  --system thunderagent --system mars --load 0.5 --load 0.7 --load 0.9 --load 1.2 \
	  --sessions 100 --overwrite --out $(DEMO)
	$(BIN)/marsbench report $(DEMO) > /dev/null
	@echo "page: $(DEMO)/report.html, figure: $(DEMO)/figures/latency_vs_load.png"

check: .venv/dev            ## style, types, layers, tests
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports
	$(BIN)/pytest -q -n 3 --dist worksteal -m "not openhands and not soak"

docs: .venv/dev             ## the documentation, into out/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test: check                 ## all of it, real vLLM, SGLang and OpenHands included
	scripts/setup_vllm_cpu.sh .venv-vllm && .venv-vllm/bin/python -m pytest -q -m vllm tests/conformance tests/marsbench/engine tests/scripts tests/test_bench_engines.py
	scripts/setup_sglang_cpu.sh .venv-sglang && .venv-sglang/bin/python -m pytest -q -m sglang tests/conformance tests/marsbench/engine
	scripts/setup_openhands.sh .venv-openhands && $(BIN)/pytest -q -m "openhands or soak"

clean:
	rm -rf .venv .venv-vllm .venv-sglang .venv-openhands out build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

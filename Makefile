# SPDX-License-Identifier: Apache-2.0
# `make serve` and `make test` need nothing but Python, a C++ compiler, git and make: the rest
# is installed into .venv by scripts/setup_env.py.

.DEFAULT_GOAL := help
.PHONY: help serve test test-fast test-ops-full test-faults test-sanitizers fuzz check-macos lint format bench bench-peers stubs lock setup clean distclean

# Any Python from 3.9 starts the set-up, which then picks the one for .venv itself.
SYSTEM_PYTHON := $(shell command -v python3 || command -v python3.13 || command -v python3.12 || command -v python3.11)
PEERS := llama-cpp torch-backend
# Where no package has vLLM's CPU kernels, and a Python for Intel may come first on PATH.
ifeq ($(shell uname -s),Darwin)
  PEERS := llama-cpp
  ifneq ($(shell $(SYSTEM_PYTHON) -c 'import platform; print(platform.machine())'),arm64)
    SYSTEM_PYTHON := $(wildcard /usr/bin/python3)
  endif
endif
ifeq ($(SYSTEM_PYTHON),)
  $(error Python was not found. Debian, Ubuntu: sudo apt-get install -y python3 python3-dev python3-venv. Mac: xcode-select --install)
endif

PY := .venv/bin/python
BUILD := build/release
JOBS := $(shell getconf _NPROCESSORS_ONLN)

export MODEL PORT ARGS PYTHON

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  Variables of serve: MODEL=directory|file.gguf|hub/name  PORT=8000  ARGS="--max-model-len 2048"'
	@echo "  VLLM_METAL_USE_MLX=0 serves with vLLM's PyTorch back end, which it installs beside .venv."
	@echo '  PYTHON=python3.12 chooses the interpreter of .venv.'

serve:  ## set up and serve the default model, or MODEL=…, on 127.0.0.1:8000
	@$(SYSTEM_PYTHON) scripts/serve.py

test: setup  ## set up and run all tests: C++, plugin, parity, end to end
	.venv/bin/cmake --build $(BUILD) --parallel $(JOBS)
	@scripts/run_tests.sh all

test-fast: setup  ## the tests that need neither a server nor the real model
	.venv/bin/cmake --build $(BUILD) --parallel $(JOBS)
	@scripts/run_tests.sh fast

test-ops-full: setup  ## products of all dtypes, bits, groups, shapes and batches, some two hours
	.venv/bin/cmake --build $(BUILD) --parallel $(JOBS) --target test_kernels test_gpu
	VLLM_METAL_TEST_OPS=full $(BUILD)/tests/cpp/test_kernels --gtest_filter='*Table*'
	VLLM_METAL_TEST_OPS=full $(BUILD)/tests/cpp/test_gpu --gtest_filter='*Table*'

test-faults: setup  ## servers in trouble in both modes, thousands of malformed requests, ten minutes
	VLLM_METAL_TEST_FAULTS=full $(PY) -m pytest tests/e2e/test_faults.py tests/e2e/test_fault_processes.py

test-sanitizers: setup  ## the C++ tests under ASan, UBSan and TSan, half an hour
	@scripts/test_sanitizers.sh asan tsan

fuzz:  ## the fuzzers of what reads model files, a minute each; ARGS="600 gguf"
	@scripts/fuzz.sh $(ARGS)

check-macos:  ## cross-build the wheels for macOS on Linux and check them; ARGS=--tests: the tests too
	@$(SYSTEM_PYTHON) scripts/check_macos.py $(ARGS)

lint: setup  ## formats, types, layers, licence headers, stubs; changes nothing
	$(PY) scripts/lint.py

format: setup  ## format C++ and Python in place
	$(PY) scripts/lint.py --format

stubs: setup  ## regenerate python/vllm_metal/_core.pyi from the extension
	$(PY) scripts/lint.py --stubs

bench: setup  ## run benchmarks/, compare, plot; ten minutes. ARGS=--quick, ARGS="--only …"
	@$(PY) benchmarks/report.py --run $(ARGS)

bench-peers: setup  ## install what benchmarks compare with: llama.cpp (compiled here), vLLM on torch (Linux)
	@$(SYSTEM_PYTHON) scripts/peer_env.py $(PEERS)

setup:  ## set up .venv for development, build the extension and the C++ tests
	@$(SYSTEM_PYTHON) scripts/setup_env.py dev

lock:  ## resolve requirements/*.in into the lock files
	scripts/lock.sh

clean:  ## remove what was built
	rm -rf build dist .cache/wheel .pytest_cache .mypy_cache .ruff_cache

distclean: clean  ## remove .venv and caches too
	rm -rf .venv .cache

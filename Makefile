# One command a chore. Everything runs in .venv, which the first command makes.

PYTHON ?= python3
# A CPU-only user sets TORCH_INDEX=https://download.pytorch.org/whl/cpu to spare the download of CUDA.
TORCH_INDEX ?=

BIN := .venv/bin
READY := .venv/.ready
# Idle threads sleep instead of spinning: two test processes share two cores.
TESTS := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/pytest -n 2

.PHONY: help install demo test test-slow browser chromium lint bench ecosystem gpu-check tune clean

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/'

install: $(READY)  ## make .venv with the tested versions

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)  ## train on the built-in stories for three minutes and tell one
	@$(BIN)/smallgpt train demo

test: $(READY)  ## the tests, some minutes
	$(TESTS)

# Those in a browser by themselves: Chromium wants the cores that others would take.
PAGE := tests/interfaces/http/page

test-slow: $(READY)  ## the long ones
	$(TESTS) -m slow --ignore=$(PAGE)
	$(TESTS) -m slow $(PAGE)

# The version is that of the rules: a newer one may find more.
AXE := 4.14.1
AXE_FILE := .cache/axe/package/axe.min.js

APT_INSTALL := DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends

browser: chromium $(AXE_FILE)  ## what the page's tests need: Chromium and, by npm, axe-core (on Debian, as root)

chromium:
	@command -v chromium chromium-browser google-chrome >/dev/null || { apt-get -qq update && $(APT_INSTALL) chromium; }

$(AXE_FILE): Makefile
	@command -v npm >/dev/null || { apt-get -qq update && $(APT_INSTALL) npm; }
	mkdir -p .cache/axe
	cd .cache/axe && npm pack --silent axe-core@$(AXE) && tar -xzf axe-core-$(AXE).tgz && touch package/axe.min.js

lint: $(READY)  ## style, types and the rules of who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)  ## operations beside torch's own, two minutes; fails if one is slower beside them than in the baseline
	$(BIN)/python -m tests.benchmarks.ratios

gpu-check:  ## the kernels on this machine's GPU: parity, times, training (needs torch, triton, pytest; no .venv)
	PYTHONPATH=typings $(PYTHON) -m tests.gpu_check

# The harness wants older packages than ours, so it gets a .venv of its own.
ECOSYSTEM := .cache/ecosystem

ecosystem:  ## lm-evaluation-harness beside `smallgpt evaluate` on runs/demo, some minutes
	$(PYTHON) -m venv $(ECOSYSTEM)
	$(ECOSYSTEM)/bin/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c constraints.txt torch
	$(ECOSYSTEM)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[hf]'
	$(ECOSYSTEM)/bin/pip install --quiet --disable-pip-version-check 'lm_eval[hf]==0.4.13'
	$(ECOSYSTEM)/bin/python tests/ecosystem/lm_eval_agrees.py runs/demo

OPERATION ?= attention
ARCHITECTURE ?= sm_75 sm_80 sm_86 sm_89 sm_90 sm_100 sm_120 gfx942

tune:  ## write OPERATION's tile table for ARCHITECTURE, by measuring where the GPU is one, else by compiling
	PYTHONPATH=typings $(PYTHON) -m tests.gpu_check.tune $(OPERATION) --architecture $(ARCHITECTURE)

clean:  ## remove what can be made again (not data/ and runs/)
	rm -rf .venv .cache build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

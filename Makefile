# Set-up, checks and the demo, each with one command; `make` lists them.
# PYTHON chooses the interpreter that makes .venv, for example: make setup PYTHON=python3.10 VENV=.venv-3.10

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
PIP_ARGS ?=
PUBLISH_ARGS ?=

RUN := $(VENV)/bin/python
STAMP := $(VENV)/.edgead-installed
UNFINISHED := $(VENV)/.edgead-unfinished

.DEFAULT_GOAL := help
.PHONY: help setup wheels release publish capi demo test test-slow lint docs format bench gpu-report gpu-day clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: $(STAMP) ## Make .venv with everything that the other targets need

# A set-up that was killed may have left half a package, which pip would take for a whole one: start anew then.
$(STAMP): pyproject.toml constraints.txt runtime/version.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
		{ echo "edgead needs Python 3.10 or newer, '$(PYTHON)' is not: make setup PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "'$(PYTHON)' cannot make a virtual environment; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	@if [ -e $(UNFINISHED) ]; then echo "The last set-up was interrupted; starting anew."; rm -rf $(VENV); fi
	@$(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@touch $(UNFINISHED)
	@trap 'exit 130' INT TERM; \
	$(RUN) -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev,release]' || \
		{ rm -f $(UNFINISHED); echo "Set-up failed: see pip's message above, then run make again." >&2; exit 2; }
	@mv $(UNFINISHED) $@

demo: setup ## Fit, export, check and run on real solar cells; results in demo/
	$(RUN) examples/demo.py

test: lint ## All checks: lint, types, import contract, tests
	$(RUN) -m pytest -n $(WORKERS) --no-loadscope-reorder -rs

test-slow: setup ## The tests that take minutes
	$(RUN) -m pytest -m 'slow and not gpu and not tensorrt'

lint: setup ## ruff, codespell, mypy --strict, import contract
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m codespell_lib
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

docs: setup ## The documentation as a site that needs no network: dist/docs/index.html
	$(RUN) -m sphinx -q -W --keep-going -b html -d build/docs-trees docs dist/docs

format: setup ## Put the code into its form
	$(RUN) -m ruff check --fix-only .
	$(RUN) -m ruff format .

wheels: setup ## Wheels with the native code compiled, for devices without a compiler; in dist/
	$(RUN) .ci/wheels

release: setup ## All packages of the last commit, checked, with bills of materials and digests; in dist/release
	@[ -e /usr/include/nlohmann/json.hpp ] || { echo "on Debian or Ubuntu: apt-get install nlohmann-json3-dev" >&2; exit 2; }
	$(RUN) -m pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[release]'
	$(RUN) .ci/release

publish: setup ## Upload dist/release, if it is what tag and CHANGELOG say; PUBLISH_ARGS=--dry-run sends nothing
	$(RUN) .ci/publish $(PUBLISH_ARGS)

capi: ## libedgead, its header and CMake files, in dist/capi; needs g++, cmake and nlohmann-json3-dev
	@command -v cmake >/dev/null && command -v c++ >/dev/null && [ -e /usr/include/nlohmann/json.hpp ] || \
		{ echo "on Debian or Ubuntu: apt-get install make g++ cmake nlohmann-json3-dev" >&2; exit 2; }
	cmake -S runtime/capi -B build/capi -DCMAKE_INSTALL_PREFIX=$(CURDIR)/dist/capi -DCMAKE_INSTALL_LIBDIR=lib
	cmake --build build/capi --parallel 2
	cmake --install build/capi

bench: setup | demo/solar_cell.edgead ## Speed of resize, camera loop and folded network, on the demo's model
	$(RUN) -m benchmarks.preprocess
	$(RUN) -m benchmarks.overhead demo/solar_cell.edgead
	$(RUN) -m benchmarks.folding demo/model

gpu-report: setup ## Tests and speed of the CUDA kernels on this machine's GPU, as a row of docs/kernels.md
	@$(RUN) -m benchmarks.gpu_report

gpu-day: setup ## Every stage of docs/gpu-day.md on this machine's GPU, in gpu-day/; KIT=DIR: what was packed
	@$(RUN) -m benchmarks.gpu_day --out gpu-day $(if $(KIT),--kit $(KIT))

demo/solar_cell.edgead:
	$(MAKE) demo

clean: ## Remove what these targets made, .venv and demo/ included
	rm -rf $(VENV) build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

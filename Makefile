# The commands of this repository; `make` alone lists them.
# Everything is installed into $(VENV) from the lock files; nothing outside of this folder is touched.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

UV_VERSION := 0.13.9
BIN := $(VENV)/bin
RUN := $(BIN)/python
FAST_TESTS := tests/unit tests/contract tests/architecture

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo up test check containers chaos chaos-quick recovery bench clean lock fmt migrate docs .venv python-is-new-enough

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## start everything, train models through it, keep serving; ARGS=--once ends after the runs
	@exec $(RUN) -m orchestrator.local demo $(ARGS)

up: $(VENV)/.installed ## start the same system without the example; Ctrl-C stops it
	@exec $(RUN) -m orchestrator.local up $(ARGS)

test: $(VENV)/.installed-dev ## run all tests except chaos and load
	$(RUN) -m pytest $(FAST_TESTS) tests/integration tests/chaos -m "not chaos and not load" -n auto --dist loadscope $(ARGS)
	$(RUN) -m pytest tests/acceptance -m "not chaos and not load" -n auto --dist loadfile $(ARGS)

check: $(VENV)/.installed-dev ## all that CI checks besides the tests: format, lint, types, import contracts, docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports
	$(RUN) docs/generate.py --check
	$(if $(CI),,$(RUN) -m pytest -q $(FAST_TESTS) -n auto)

containers: $(VENV)/.installed-dev ## start the compose file in a container engine and break it: memory, networks, restarts
	$(RUN) -m pytest tests/containers -v -rA $(ARGS)

chaos: $(VENV)/.installed-dev ## break everything on purpose: nothing lost, nothing twice; ARGS='--seed=7 -k flush' repeats
	$(RUN) -m pytest tests/chaos -m chaos -v --burst=10000 $(ARGS)
	$(if $(findstring -k,$(ARGS)),,SIMULATION=long $(RUN) -m pytest tests/unit/test_simulation.py -v)

chaos-quick: $(VENV)/.installed-dev ## the scenarios of it that CI runs
	$(RUN) -m pytest tests/chaos -m chaos_quick -v $(ARGS)

recovery: $(VENV)/.installed-dev ## how soon faults are seen and mended, with the timings as shipped; ARGS='dead-host --repeats 5'
	$(RUN) -m tests.chaos.recovery $(ARGS)

bench: $(VENV)/.installed-dev ## tasks per second and ms per hop, beside Celery's own chain and chord
	$(RUN) -m benchmarks $(ARGS)

migrate: $(VENV)/.installed ## bring the database at DATABASE_URL to the newest schema
	$(RUN) -m orchestrator.store.migrate

docs: $(VENV)/.installed-dev ## write the generated pages of docs/
	$(RUN) docs/generate.py

fmt: $(VENV)/.installed-dev ## format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(VENV)/.installed ## resolve setup.cfg anew into the lock files; ARGS=--upgrade takes newer versions
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --custom-compile-command "make lock" \
		--extra all setup.cfg -o requirements.txt $(ARGS)
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --custom-compile-command "make lock" \
		--extra dev -c requirements.txt setup.cfg -o requirements-dev.txt $(ARGS)

clean: ## remove the data folder (DATA_DIR, .data); refused while the system runs
	@if [ -x $(RUN) ]; then exec $(RUN) -m orchestrator.local clean; else echo "Nothing to remove: no system was started here."; fi

# --- the environment ---

.venv: $(VENV)/.installed-dev

python-is-new-enough:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed; '$(PYTHON)' is not there or older. Name one: make PYTHON=python3.12 …" >&2; \
		exit 1; }

$(BIN)/python: | python-is-new-enough
	@$(PYTHON) -m venv $(VENV) >/dev/null && $(RUN) -m pip --version >/dev/null || { rm -rf $(VENV); \
		echo "$(PYTHON) can't make virtual environments with pip; on Debian and Ubuntu: apt install python3-venv" >&2; \
		exit 1; }

# uv installs the lock in seconds; where it can't be had or can't reach what pip reaches, pip does the same slowly. Left
# alone, uv trusts only the certificates it brings along, which a company's proxy is not among.
# Compiling now costs 9 s once; left to the first imports it makes the first run 4 s slower. pip always compiles.
INSTALL = { test -x $(BIN)/uv && \
	UV_SYSTEM_CERTS=$${UV_SYSTEM_CERTS:-true} $(BIN)/uv pip install -q --compile-bytecode --python $(RUN) $(1); } || \
	{ echo "pip installs them instead of uv, which takes a few minutes …"; $(RUN) -m pip install -q $(1); }

$(VENV)/.installed: requirements.txt setup.cfg | $(BIN)/python
	@echo "Installing the locked dependencies into $(VENV) …"
	@$(RUN) -m pip install -q --disable-pip-version-check uv==$(UV_VERSION) || echo "uv can't be had here."
	@$(call INSTALL,-r requirements.txt)
	@$(call INSTALL,--no-deps -e .)
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	@$(call INSTALL,-r requirements-dev.txt)
	@touch $@

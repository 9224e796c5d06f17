# Both `make demo` and `make test` work from a bare checkout: they build .venv first, and skip that when nothing changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install demo test lint test-unit test-sweep bench constraints clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(STAMP)  ## virtual environment in .venv, pinned versions, editable install

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; set PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: install  ## four hospitals train one model on the heart table under secure aggregation and differential privacy
	$(BIN)/fl demo heart

test: lint test-unit  ## everything that must be green: lint, types, import contracts, tests

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-unit: install
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -m 'not sweep'

test-sweep: install  ## the heavy sweeps
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -m sweep

bench: install  ## the benchmarks, each printing one table
	@for b in benchmarks/*.py; do echo "== $$b"; $(BIN)/python $$b || exit 1; done

constraints: install  ## resolve constraints.txt anew, for every supported Python
	$(BIN)/uv pip compile --universal --python-version 3.11 --all-extras --no-emit-index-url --no-header --no-annotate --upgrade pyproject.toml -o constraints.txt

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

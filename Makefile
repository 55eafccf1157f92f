# The two commands are `make run` and `make test`; the others are for those who work on the code.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test test-long check bench bench-handover clean

run: .venv/installed
	@$(BIN)/python -m examples.market

test: .venv/installed check
	@$(BIN)/python -m pytest --numprocesses=2

# What takes minutes, nearly all of them spent waiting; `make test` leaves it out.
test-long: .venv/installed
	@$(BIN)/python -m pytest --numprocesses=2 --dist=load -m long

check: .venv/installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy

bench: .venv/installed
	@$(BIN)/python -m bench --install
	@$(BIN)/python -m bench

bench-handover: .venv/installed
	@$(BIN)/python -m bench.handover

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "sse_app needs Python 3.11 or later: make PYTHON=python3.11 …"; exit 1; }
	@echo "building .venv …"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --requirement requirements.txt
	@touch $@

clean:
	rm -rf .venv bench/.build bench/.peers var build dist *.egg-info .mypy_cache .ruff_cache .hypothesis

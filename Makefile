# The two commands are `make run` and `make test`; the others are for those who work on the code: `make quick` is what
# one runs while writing.

PYTHON ?= python3
BIN := .venv/bin
PROCESSES ?= 6

# Else each of the hundreds of servers that the tests start would compile the whole program first.
unexport PYTHONDONTWRITEBYTECODE

LINT = $(BIN)/ruff check . && $(BIN)/ruff format --check --quiet .
CHECK = $(LINT) && $(BIN)/mypy

.PHONY: run test quick test-slow test-long test-faults test-faults-long check dist bench bench-quick bench-handover clean

run: .venv/installed
	@$(BIN)/python -m examples.market

# mypy keeps one processor busy, so tests run meanwhile; what it finds is told behind them.
MYPY_BESIDE = mkdir -p .mypy_cache; $(BIN)/mypy >.mypy_cache/found 2>&1 & typing=$$!;
MYPY_TOLD = status=$$?; wait $$typing || { cat .mypy_cache/found; status=1; }; exit $$status

# The tests are compiled before they begin; else each of pytest's processes does it.
# More processes than processors: now and then a test waits, for a timeout, a restart, or another process.
# CI takes MARKED='not slow and not long', which runs those marked ci among the others.
test: .venv/installed
	@$(LINT)
	@$(MYPY_BESIDE) $(BIN)/python -m pytest --collect-only --quiet >/dev/null; \
	$(BIN)/python -m pytest --numprocesses=$(PROCESSES) $(if $(MARKED),-m '$(MARKED)'); $(MYPY_TOLD)

quick: .venv/installed
	@$(LINT)
	@$(MYPY_BESIDE) $(BIN)/python -m pytest --numprocesses=2 tests/unit; $(MYPY_TOLD)

# What takes more than a third of a second of the processors, and what CI runs beside make test.
test-slow: .venv/installed
	@$(BIN)/python -m pytest --numprocesses=$(PROCESSES) -m '(ci or slow) and not long'

# What takes more than one and a half seconds of them, and further forms of what the others try in one.
test-long: .venv/installed
	@$(BIN)/python -m pytest --numprocesses=2 --dist=load -m long

# Harm done to servers in each way to run them, and an account of every event. Minutes; and some hours, of which
# docs/reliability.md is made.
test-faults: .venv/installed
	@$(BIN)/python -m tests.faults --at-once 4

test-faults-long: .venv/installed
	@$(BIN)/python -m tests.faults --long --at-once 2 --results tests/faults/results/faults.jsonl
	@$(BIN)/python -m tests.faults.soak --results tests/faults/results/soaks.jsonl
	@$(BIN)/python -m tests.faults.bugs --results tests/faults/results/bugs.jsonl
	@$(BIN)/python -m tests.faults.report

check: .venv/installed
	@$(CHECK)

# The wheel, the source distribution and the browser client's package, into dist/.
dist: .venv/installed
	@$(BIN)/python scripts/dist.py

# About 45 minutes, and under 5. With BEFORE=CHECKOUT another checkout of sse_app is measured beside this one, in the same rounds.
bench: .venv/installed
	@$(BIN)/python -m bench --install
	@$(BIN)/python -m bench $(if $(BEFORE),--before $(BEFORE))

bench-quick: .venv/installed
	@$(BIN)/python -m bench --quick $(if $(BEFORE),--before $(BEFORE))

bench-handover: .venv/installed
	@$(BIN)/python -m bench.handover
	@$(BIN)/python -m bench.handover --workers 4

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "sse_app needs Python 3.11 or later: make PYTHON=python3.11 …"; exit 1; }
	@echo "building .venv …"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes --requirement requirements.txt
	@touch $@

clean:
	rm -rf .venv venv bench/.build bench/.peers var build dist *.egg-info .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# Two commands: `make demo` and `make test`. Both make .venv by themselves and can be repeated.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One OpenMP thread per process unless a process asks for more: with several processes on few cores, OpenMP pools
# that each take every core slow everything down by more than ten times.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: install demo test test-long lint bench clean
install: $(STAMP)
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[all,dev]'
	touch $(STAMP)

demo: install
	$(BIN)/medvista demo $(ARGS)

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

# The unit tier runs by itself: it checks that it loads neither Ray nor torch. Then its fuzz tests, with their cases.
PYTEST := $(BIN)/python -m pytest --durations=15
UNIT := $(PYTEST) -n 2 --dist loadgroup tests/unit
FUZZ := $(PYTEST) -n 2 tests/unit -m fuzz --timeout 3000

test: lint
	$(UNIT) -m 'not long and not gpu and not fuzz'
	MEDVISTA_FUZZ_CASES=2000 $(FUZZ)
	$(PYTEST) tests --ignore=tests/unit -m 'not long and not gpu'

test-long: lint
	$(UNIT) -m 'not gpu and not fuzz'
	MEDVISTA_FUZZ_CASES=100000 $(FUZZ)
	$(PYTEST) tests --ignore=tests/unit -m 'not gpu'

# Every benchmark: a table each, JSON in runs/bench, and at the end what falls short of its bar. ARGS=--quick for less.
bench: install
	mkdir -p runs/bench
	for script in env data; do $(BIN)/python benchmarks/$$script.py --json runs/bench/$$script.json $(ARGS) || exit 1; done
	$(BIN)/python benchmarks/shortfalls.py runs/bench/*.json

clean:
	rm -rf $(VENV) runs

# make install | demo | test | test-reliability | check | docs | bench | nightly
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# One thread a test process: two processes share two cores without fighting over them.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: install demo test test-reliability check format bench nightly reference docs clean

install: $(VENV)/.installed

# Reinstalled only when what decides the result has changed.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@

demo: install
	$(BIN)/tunesmith demo

test: install
	$(PYTEST) -n 2 --dist worksteal --durations=25

test-reliability: install
	$(PYTEST) -n 2 --dist worksteal -m "reliability and not slow" -rP --durations=15

check: install
	$(BIN)/ruff check src tests bench scripts
	$(BIN)/ruff format --check src tests bench scripts
	$(BIN)/mypy
	$(BIN)/python scripts/make_reference.py --check
	$(PYTEST) tests/test_layers.py

format: install
	$(BIN)/ruff check --fix src tests bench scripts
	$(BIN)/ruff format src tests bench scripts

# A static site in build/docs; a dead link between the guides fails it.
docs: install
	$(BIN)/python scripts/make_docs.py

reference: install
	$(BIN)/python scripts/make_reference.py

# The peer is measured in the same run, on the same requests.
bench: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]' -c constraints.txt
	$(BIN)/python bench/bench_train.py
	$(BIN)/python bench/bench_generate.py

nightly: install
	TUNESMITH_NIGHTLY=1 $(PYTEST) -n 2 --dist worksteal -rP -m "slow or reliability or not slow"

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

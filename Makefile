# Two commands for everybody: make demo, make test. Each sets up .venv by itself on first use.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test nightly check setup clean

# A place with people in front of it, federated; .venv/bin/fedfields demo images: four methods on photographs.
demo: setup
	$(BIN)/fedfields demo

test: setup
	$(BIN)/python -m pytest

# Thousands of generated rounds of secure sums, how many ended how; runs killed at every moment; thousands of bad files.
nightly: setup
	FEDFIELDS_CASES=2000 $(BIN)/python -m pytest -k generated_rounds tests/privacy
	FEDFIELDS_CASES=300 $(BIN)/python -m pytest -s -k killed tests/runtime/test_crash.py
	FEDFIELDS_CASES=2000 $(BIN)/python -m pytest -s tests/test_parsers.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "setting up .venv: PyTorch and the other libraries, a few minutes the first time"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

clean:
	rm -rf .venv dist build .pytest_cache .ruff_cache .import_linter_cache

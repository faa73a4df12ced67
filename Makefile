VENV ?= .venv
PYTHON ?= python3
DATA ?= ../shared/data
REFERENCE = first_table first_lm commonsense_sft toy_arithmetic toy_tasks
BIN := $(VENV)/bin

.PHONY: install quickstart test test-cluster test-ray contract-all accept bench lint clean

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
	$(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder -m "not accept and not bench and not cluster"

# a real one-node SLURM; skips and says why where Debian's packages (root, apt-get) or submitit cannot be installed
test-cluster: install
	-tests/cluster/packages.sh
	-$(BIN)/pip install --quiet $$(grep -E '^(submitit|cloudpickle)==' launchers.lock)
	$(BIN)/python -m pytest -m cluster -rs tests/cluster/test_slurm.py

# a real local Ray, before a release
test-ray: install
	$(BIN)/pip install --quiet -r requirements.lock -r launchers.lock
	$(BIN)/python -m pytest -m cluster -rs tests/cluster/test_ray.py

contract-all: install
	PAREBENCH_CONTRACT=all $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder tests/contract

accept: install
	for sweep in $(REFERENCE); do \
	  $(BIN)/parebench -m +sweeps=$$sweep data_dir=$(DATA) hydra.launcher.workers=2 run.eval_batch=8 && rm -rf sweeps/results/$$sweep && \
	  $(BIN)/parebench-report export-records $$sweep --out sweeps/results/$$sweep || exit 1; \
	done
	$(BIN)/python -m pytest -m accept

# ratios and limits of speed; on a machine that does nothing else
bench: install
	$(BIN)/python -m pytest -m bench -s tests/bench/sweep_scale.py tests/bench/sweep_restart.py tests/bench/sweep_overhead.py \
		tests/bench/adapter_cost.py tests/bench/switching.py tests/bench/structured_latency.py tests/bench/report_scale.py \
		tests/bench/page_scale.py

lint: install
	$(BIN)/pip install --quiet ruff==0.17.5
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build *.egg-info

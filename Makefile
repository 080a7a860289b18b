# Two environments, because Axolotl pins its stack: .venv has the newest TRL, .venv-axolotl has Axolotl and its pins.
PYTHON ?= python3
WORKERS ?= 2
LOWEST_PYTHON ?= python3.10
export HF_HUB_OFFLINE = 1
export AXOLOTL_DO_NOT_TRACK = 1
export TOKENIZERS_PARALLELISM = false
# Images of containers often forbid bytecode: each process would compile all that it imports.
export PYTHONDONTWRITEBYTECODE =

# Tests of one file stay together, in their order, and files start in theirs: the dearest come first (tests/conftest.py).
PYTEST = -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
# Python compiles what is imported, and most of what is installed never is.
INSTALL = -m pip install --quiet --no-compile

.PHONY: demo test test-all test-zero test-lowest packages lint bench golden docs clean

# Of tiny models, threads that wait for one another cost more than they give.
demo test test-all test-zero: export OMP_NUM_THREADS = 1

demo: .venv/ready
	.venv/bin/pact demo --out demo-report

# Each test once: in Axolotl's environment what needs it, and the few of `PINS` in tests/conftest.py.
test:
	$(MAKE) --jobs 2 .venv-axolotl/ready lint test-zero
	.venv-axolotl/bin/python $(PYTEST) -m "(axolotl or pins) and not release"
	.venv/bin/python $(PYTEST) -m "not axolotl and not release and not packages"

# Before a release: everything in both, and whether faults are noticed.
test-all: .venv/ready .venv-axolotl/ready lint test-zero
	.venv-axolotl/bin/python $(PYTEST) -m "not trl and not packages"
	.venv/bin/python $(PYTEST) -m "not axolotl and not packages"
	.venv/bin/python -m tests.mutations

test-zero: .deepspeed/ready
	PYTHONPATH=.deepspeed .venv/bin/python -m pytest tests/distributed/test_zero.py

# The lowest releases that pyproject.toml allows of everything, Python included.
test-lowest: export OMP_NUM_THREADS = 1
test-lowest: .venv-lowest/ready
	.venv-lowest/bin/python $(PYTEST) -m "not trl and not axolotl and not packages"

packages: export OMP_NUM_THREADS = 1
packages: .venv/ready
	.venv/bin/python -m pytest tests/test_extras.py -m packages --durations 0

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright

bench: .venv/ready
	.venv/bin/python -m benchmarks.step_cost --quick --json step-cost.json --markdown step-cost.md
	.venv/bin/python -m benchmarks.cache_build --quick --json cache-build.json
	.venv/bin/python -m benchmarks.scaling --quick --json scaling.json --markdown scaling.md

golden: .venv/ready
	.venv/bin/python -m tests.golden tests/golden

docs: .venv/docs-ready
	.venv/bin/sphinx-build --fail-on-warning --keep-going --fresh-env docs docs/_build

.venv/ready: pyproject.toml requirements/trl.txt
	@echo "Installing the newest TRL into .venv: some minutes, once."
	$(PYTHON) -m venv .venv
	.venv/bin/python $(INSTALL) --constraint requirements/trl.txt --editable ".[dev]"
	touch $@

.venv/docs-ready: .venv/ready
	.venv/bin/python $(INSTALL) --constraint requirements/trl.txt --editable ".[docs]"
	touch $@

.venv-axolotl/ready: pyproject.toml requirements/axolotl.txt
	@echo "Installing Axolotl into .venv-axolotl: some minutes, once."
	$(PYTHON) -m venv .venv-axolotl
	.venv-axolotl/bin/python $(INSTALL) --constraint requirements/axolotl.txt --editable ".[axolotl,test]"
	touch $@

.venv-lowest/ready: pyproject.toml requirements/lowest.txt
	$(LOWEST_PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python $(INSTALL) --constraint requirements/lowest.txt --editable ".[trl,test]"
	touch $@

.deepspeed/ready: .venv/ready requirements/deepspeed.txt
	.venv/bin/python $(INSTALL) --no-deps --upgrade --target .deepspeed --requirement requirements/deepspeed.txt
	touch $@

clean:
	rm -rf .venv .venv-axolotl .venv-lowest .deepspeed demo-report docs/_build

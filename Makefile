# Every target sets up all that it needs in .venv, from the pinned versions; `make help` lists them.

# Another Python, 3.11 to 3.13, has a folder of its own: `make test PYTHON=python3.13` makes .venv-3.13.
PYTHON ?= python3
VERSION = $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
VENV := .venv$(if $(filter file,$(origin PYTHON)),,-$(VERSION))
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# PyTorch alone: without TensorFlow and JAX, which nothing but LiteRT export needs.
TORCH := .venv-torch
PIP := pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
export TF_CPP_MIN_LOG_LEVEL ?= 2
# Many containers set it; each process would then compile thousands of files of TensorFlow and Keras anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo docs test test-torch test-slow check quick lint format study bench dist lock clean

# Lines `##@ Group` are headings; what follows `##` explains a target.
help: ## this list
	@awk -F ':.*## ' '/^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Use
demo: $(INSTALLED) ## train, share, tune and export a CNN on scikit-learn's digits: about a minute
	$(BIN)/python examples/digits.py

docs: $(VENV)/.docs ## the documentation as a site, build/site/index.html; runs the tutorials the first time
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

##@ Tests
check: lint quick ## the inner loop, under a minute: lint, types, structure and numerics

quick: $(INSTALLED) ## structure and numerics
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -n 2 --dist worksteal tests/test_structure.py tests/numerics -k 'not docstrings'

lint: $(INSTALLED) ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(INSTALLED) ## all tests but the slow ones, on the TensorFlow and the JAX backend
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -n 2 --dist worksteal
	KERAS_BACKEND=jax $(BIN)/python -m pytest -n 2 --dist worksteal

test-torch: $(TORCH)/.installed ## the tests on PyTorch, in .venv-torch: fetches PyTorch, gigabytes on some machines
	KERAS_BACKEND=torch $(TORCH)/bin/python -m pytest -n 2 --dist worksteal

test-slow: $(INSTALLED) ## the tests that take minutes each
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -m slow
	KERAS_BACKEND=jax $(BIN)/python -m pytest -m slow

##@ Evidence (written to results/)
study: $(INSTALLED) ## the tables of digits, three seeds each
	$(BIN)/python examples/digits.py --seeds 3 --levels 2 4 8 --out results
	$(BIN)/python examples/wnq_digits.py --seeds 3 --layers inner all --start scratch float --out results

bench: $(INSTALLED) ## the benchmarks that need no data: sizes, speed, defaults; an hour or more
	$(BIN)/python -m benchmarks.recipe --out results
	$(BIN)/python -m benchmarks.wnq_error --out results
	$(BIN)/python -m benchmarks.wnq_step --out results
	$(BIN)/python -m benchmarks.size --out results
	$(BIN)/python -m benchmarks.archive --out results
	KERAS_BACKEND=tensorflow $(BIN)/python -m benchmarks.penalty --out results
	KERAS_BACKEND=jax $(BIN)/python -m benchmarks.penalty --out results
	$(BIN)/python -m benchmarks.step --network lenet --out results
	$(BIN)/python -m benchmarks.step --network vgg16 --out results
	$(BIN)/python -m benchmarks.kmeans --out results
	$(BIN)/python -m benchmarks.scaling --out results

##@ Upkeep
format: $(INSTALLED) ## mend what the linter can, and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dist: $(VENV)/.release ## what goes to a package index, dist/: sdist and wheel, checked
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

lock: ## new pins: install the newest versions that setup.cfg admits, and write them down
	rm -rf $(VENV) && $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e '.[dev,docs,release]'
	$(BIN)/pip freeze --exclude-editable > constraints.txt
	touch $(INSTALLED)

clean: ## remove .venv and its like, builds and output/
	rm -rf .venv .venv-* build dist output *.egg-info

$(INSTALLED): constraints.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(PIP) -e '.[dev]'
	touch $@

$(VENV)/.docs $(VENV)/.release: $(VENV)/.%: $(INSTALLED)
	$(BIN)/$(PIP) -e '.[$*]'
	touch $@

$(TORCH)/.installed: constraints.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv $(TORCH)
	$(TORCH)/bin/$(PIP) torch==2.13.0 keras lazy-loader constriction pyyaml zstandard \
		matplotlib tensorboardX scikit-learn hypothesis psutil pytest pytest-xdist
	$(TORCH)/bin/$(PIP) --no-deps -e .
	touch $@

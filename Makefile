# Every target sets up all that it needs in .venv, from the pinned versions; `make help` lists them.

# The Python that .venv is made with, 3.11 or newer: `make demo PYTHON=python3.12`.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
export TF_CPP_MIN_LOG_LEVEL ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow check lint format study bench lock clean

# Lines `##@ Group` are headings; what follows `##` explains a target.
help: ## this list
	@awk -F ':.*## ' '/^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Use
demo: $(INSTALLED) ## train, share, tune and export a CNN on scikit-learn's digits: about a minute
	$(BIN)/python examples/digits.py

##@ Tests
check: lint ## the inner loop, under a minute: lint, types, structure, and numerics on JAX
	KERAS_BACKEND=jax $(BIN)/python -m pytest -n 2 tests/test_structure.py tests/numerics -k 'not docstrings'

lint: $(INSTALLED) ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(INSTALLED) ## all tests but the slow ones, on the TensorFlow and the JAX backend
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -n 2
	KERAS_BACKEND=jax $(BIN)/python -m pytest -n 2

test-slow: $(INSTALLED) ## the tests that take minutes each
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -m slow

##@ Evidence (written to results/)
study: $(INSTALLED) ## the tables of digits, three seeds each
	$(BIN)/python examples/digits.py --seeds 3 --levels 2 4 8 --out results
	$(BIN)/python examples/wnq_digits.py --seeds 3 --layers inner all --start scratch float --out results

bench: $(INSTALLED) ## all benchmarks, of sizes, speed and defaults: an hour or more
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

lock: ## new pins: install the newest versions that setup.cfg admits, and write them down
	rm -rf .venv && $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -e '.[dev,datasets]'
	$(BIN)/pip freeze --exclude-editable > constraints.txt
	touch $(INSTALLED)

clean: ## remove .venv, builds and output/
	rm -rf .venv build output *.egg-info

$(INSTALLED): constraints.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

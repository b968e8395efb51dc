# `make demo` and `make test` each set up all they need in .venv, from the pinned versions.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo study test test-slow lint format bench lock clean

demo: $(INSTALLED)
	$(BIN)/python examples/digits.py

study: $(INSTALLED)
	$(BIN)/python examples/digits.py --seeds 3 --levels 2 4 8 --out results
	$(BIN)/python examples/wnq_digits.py --seeds 3 --layers inner all --start scratch float --out results

test: $(INSTALLED)
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -n 2
	KERAS_BACKEND=jax $(BIN)/python -m pytest -n 2

test-slow: $(INSTALLED)
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)
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

# New pins: installs the newest versions that setup.cfg admits and writes them down.
lock:
	rm -rf .venv && $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -e '.[dev,datasets]'
	$(BIN)/pip freeze --exclude-editable > constraints.txt
	touch $(INSTALLED)

clean:
	rm -rf .venv build output *.egg-info

$(INSTALLED): constraints.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

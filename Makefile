# Two commands do everything on a fresh machine: `make demo` and `make test`. They need Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin

.PHONY: demo bench test lint suite long flax notebooks docs wheel oldest compilers onnx interpreters clean

demo: $(VENV)/demo
	$(RUN)/python -m jaxnorm $(ARGS)

# Time beside other libraries, and whole programs. Further: make bench BENCH=accuracy
# (or memory, family, step, compiling, compiled, device).
BENCH ?= speed
bench: $(VENV)/bench
	$(RUN)/python -m benchmarks $(BENCH) $(ARGS)

# All checks, with one interpreter; CI runs the oldest releases and other interpreters besides.
test:
	$(MAKE) -j 2 lint wheel
	$(MAKE) suite
	$(MAKE) -j 2 flax notebooks

# A program that one process has compiled is found by the others, and by the next run.
suite long flax notebooks: export JAX_COMPILATION_CACHE_DIR = $(abspath $(VENV))/programs
suite long flax notebooks: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = 0
suite long flax notebooks: export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES = -1

lint: $(VENV)/test
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/pyright --pythonpath $(RUN)/python

suite: $(VENV)/test
	$(RUN)/pytest $(ARGS)

# What takes longest: several processes, whole networks beside Flax's, a network from the package index, bits and NaN
# of every norm on every platform.
long: $(VENV)/test
	$(RUN)/pytest -m long $(ARGS)

# Flax's own tests of its norms, with ours in their place.
flax: $(VENV)/test
	$(RUN)/python tests/flax_suites.py

# The notebooks, from top to bottom, two at a time; results/ has them with what they show.
notebooks: $(VENV)/test
	mkdir -p results
	ls notebooks/*.py | xargs -P 2 -I {} sh -c \
		'$(RUN)/jupytext --to ipynb --execute --output results/$$(basename {} .py).ipynb {}'

# The documentation site, in docs/_build; a warning is an error.
docs: $(VENV)-docs/docs
	$(VENV)-docs/bin/sphinx-build -q -W --keep-going -b html docs docs/_build

# The wheel, in an environment that has never seen this checkout.
wheel: $(VENV)/test
	rm -rf dist $(VENV)-wheel
	$(RUN)/python -m build --wheel --outdir dist
	$(PYTHON) -m venv $(VENV)-wheel
	$(VENV)-wheel/bin/pip install --quiet dist/*.whl
	cd dist && ../$(VENV)-wheel/bin/python -W error -c "import jaxnorm; jaxnorm.linen; jaxnorm.nnx; print('wheel', jaxnorm.__version__)"

# The oldest supported releases, as pyproject.toml names them: what depends on them most, adapters and rounding.
oldest: $(VENV)-oldest/oldest
	$(VENV)-oldest/bin/pytest -W ignore::DeprecationWarning tests/flax tests/laws/test_accuracy.py

# What compilers for TPU and GPU make of our programs; this needs no such device.
compilers: $(VENV)/bench
	$(RUN)/python -c "from benchmarks import compiled; compiled.environment()"
	$(VENV)-compilers/bin/pytest tests/programs/test_compilers.py

# Networks in evaluation, converted to ONNX by jax2onnx and run there.
onnx: $(VENV)-onnx/onnx
	$(VENV)-onnx/bin/pytest -W default tests/programs/test_onnx.py

# Every other interpreter that the machine has, each with the newest jax that its index offers.
interpreters:
	./.ci/interpreters $(PYTHON)

$(VENV)/%: pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --editable '.[$*]'
	touch $@

$(VENV)-oldest/oldest: pyproject.toml
	test -d $(VENV)-oldest || $(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/pip install --quiet --editable '.[suite]' $$($(PYTHON) .ci/oldest.py)
	touch $@

$(VENV)-docs/docs: pyproject.toml
	test -d $(VENV)-docs || $(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/pip install --quiet --editable '.[docs]'
	touch $@

$(VENV)-onnx/onnx: pyproject.toml
	test -d $(VENV)-onnx || $(PYTHON) -m venv $(VENV)-onnx
	$(VENV)-onnx/bin/pip install --quiet --editable '.[suite,onnx]'
	touch $@

clean:
	rm -rf .venv* dist .pytest_cache .hypothesis .ruff_cache

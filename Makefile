# Two commands do everything on a fresh machine: `make demo` and `make test`. They need Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin

.PHONY: help demo bench test lint suite long flax notebooks rendered docs links wheel oldest compilers onnx interpreters release-check clean

help: ## This list.
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 15

demo: $(VENV)/demo ## Batch norm or instance norm, and when? An experiment; ARGS=--quick for a minute of it.
	$(RUN)/python -m jaxnorm $(ARGS)

BENCH ?= speed
bench: $(VENV)/bench ## What it costs beside other libraries: BENCH=speed, accuracy, memory, family, step, compiling, compiled, device.
	$(RUN)/python -m benchmarks $(BENCH) $(ARGS)

test: ## All checks of a change with one interpreter; .ci/run runs what takes longer besides.
	$(MAKE) -j 2 lint wheel
	$(MAKE) suite
	$(MAKE) flax

# A program that one process has compiled is found by the others, and by the next run.
suite long flax notebooks: export JAX_COMPILATION_CACHE_DIR = $(abspath $(VENV))/programs
suite long flax notebooks: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = 0
suite long flax notebooks: export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES = -1

lint: $(VENV)/test ## Ruff and pyright.
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/pyright --pythonpath $(RUN)/python

suite: $(VENV)/test ## The tests; ARGS are pytest's.
	$(RUN)/pytest $(ARGS)

# Several processes, whole networks beside Flax's, a network from the package index, bits and NaN of every norm on every
# platform, the wider family.
long: $(VENV)/test ## The tests that take longest.
	$(RUN)/pytest -m long $(ARGS)

flax: $(VENV)/test ## Flax's own tests of its norms, with ours in their place.
	$(RUN)/python tests/flax_suites.py

notebooks: $(VENV)/test ## All notebooks from top to bottom; results/notebooks has them with what they show.
	ls notebooks/*.py | xargs -P 2 -I {} $(RUN)/python docs/render.py results/notebooks {}

rendered: $(VENV)/test ## The same, into docs/notebooks, which the repository and the site show: one at a time, for their timings.
	$(RUN)/python docs/render.py docs/notebooks notebooks/*.py

docs: $(VENV)-docs/docs ## The documentation site, in docs/_build; a warning is an error.
	$(VENV)-docs/bin/sphinx-build -q -W --keep-going -b html docs docs/_build

# Sphinx itself checks those within the site. These need the network.
links: $(VENV)-docs/docs ## The links out of the site.
	$(VENV)-docs/bin/sphinx-build -q -b linkcheck docs docs/_build/links

wheel: $(VENV)/test ## The wheel, in an environment that has never seen this checkout.
	rm -rf dist $(VENV)-wheel
	$(RUN)/python -m build --wheel --outdir dist
	$(PYTHON) -m venv $(VENV)-wheel
	$(VENV)-wheel/bin/pip install --quiet dist/*.whl
	cd dist && ../$(VENV)-wheel/bin/python -W error -c "import jaxnorm; jaxnorm.linen; jaxnorm.nnx; print('wheel', jaxnorm.__version__)"

# What depends on them most: adapters and rounding.
oldest: $(VENV)-oldest/oldest ## Tests with the oldest supported releases, as pyproject.toml names them.
	$(VENV)-oldest/bin/pytest -W ignore::DeprecationWarning tests/flax tests/laws/test_accuracy.py

compilers: $(VENV)/bench ## Tests of what compilers for TPU and GPU make of our programs; this needs no such device.
	$(RUN)/python -c "from benchmarks import compiled; compiled.environment()"
	$(VENV)-compilers/bin/pytest tests/programs/test_compilers.py

onnx: $(VENV)-onnx/onnx ## Tests of networks that jax2onnx converts to ONNX.
	$(VENV)-onnx/bin/pytest -W default tests/programs/test_onnx.py

interpreters: ## The tests with every other interpreter that the machine has, each with the newest jax for it.
	./.ci/interpreters $(PYTHON)

release-check: $(VENV)/test ## What a release needs: metadata, changelog, wheel and sdist in clean environments.
	PYTHON=$(PYTHON) RUN=$(RUN) ./.ci/release_check

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

clean: ## Removes environments, builds and caches.
	rm -rf .venv* dist docs/_build .pytest_cache .hypothesis .ruff_cache

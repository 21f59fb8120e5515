# Two commands do everything on a fresh machine: `make demo` and `make test`. They need Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin

.PHONY: demo test lint suite wheel oldest interpreters clean

demo: $(VENV)/demo
	$(RUN)/python -m jaxnorm $(ARGS)

# All that CI runs.
test: lint suite wheel oldest interpreters

lint: $(VENV)/test
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/pyright --pythonpath $(RUN)/python

suite: $(VENV)/test
	$(RUN)/pytest

# The wheel, in an environment that has never seen this checkout.
wheel: $(VENV)/test
	rm -rf dist $(VENV)-wheel
	$(RUN)/python -m build --wheel --outdir dist
	$(PYTHON) -m venv $(VENV)-wheel
	$(VENV)-wheel/bin/pip install --quiet dist/*.whl
	cd dist && ../$(VENV)-wheel/bin/python -W error -c "import jaxnorm; jaxnorm.linen; print('wheel', jaxnorm.__version__)"

# The oldest supported releases, as pyproject.toml names them.
oldest: $(VENV)-oldest/oldest
	$(VENV)-oldest/bin/pytest -W ignore::DeprecationWarning tests

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

clean:
	rm -rf .venv* dist .pytest_cache .hypothesis .ruff_cache

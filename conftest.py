"""Settings of the whole suite, doctests included: strict promotion of dtypes and ranks, and several devices."""

import gc
import os
from importlib.util import find_spec

from flags import xla_flags

# Read when jax starts; with several devices to shard over.
os.environ["XLA_FLAGS"] = f"{xla_flags(xla_force_host_platform_device_count=8)} {os.environ.get('XLA_FLAGS', '')}"

import hypothesis
import jax
import jax.numpy as jnp
import pytest

import jaxnorm as jn

# A trace makes many small objects that live: to look through them as often as Python does takes a tenth of the time.
gc.freeze()
gc.set_threshold(200_000, 20, 100)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples in every run; compiling a new shape takes longer than hypothesis would wait.
hypothesis.settings.register_profile("jaxnorm", derandomize=True, deadline=None, max_examples=25)
hypothesis.settings.register_profile("few", derandomize=True, deadline=None, max_examples=5)
hypothesis.settings.load_profile("jaxnorm")


# Adapters for libraries that are not here.
collect_ignore = [f"jaxnorm/{name}.py" for name in ("equinox", "haiku") if find_spec(name) is None]


@pytest.fixture(autouse=True)
def _names_of_doctests(doctest_namespace):
    doctest_namespace.update(jn=jn, jnp=jnp, jax=jax)

"""Settings of the whole suite, doctests included: strict promotion of dtypes and ranks, and several devices."""

import os

# Read when jax starts: devices to shard over; and machine code that is made in half the time, as most tests run a
# program once. Where rounding is tested, the programs are optimized as users have them (tests/test_numerics.py).
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{FLAGS} {os.environ.get('XLA_FLAGS', '')}"

import hypothesis  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import pytest  # noqa: E402

import jaxnorm as jn  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples in every run; compiling a new shape takes longer than hypothesis would wait.
hypothesis.settings.register_profile("jaxnorm", derandomize=True, deadline=None, max_examples=25)
hypothesis.settings.register_profile("few", derandomize=True, deadline=None, max_examples=5)
hypothesis.settings.load_profile("jaxnorm")


@pytest.fixture(autouse=True)
def _names_of_doctests(doctest_namespace):
    doctest_namespace.update(jn=jn, jnp=jnp, jax=jax)

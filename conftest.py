"""Settings of the whole suite, doctests included: strict promotion of dtypes and ranks, and several devices."""

import importlib.metadata
import os

# Machine code that is made in a third of the time, as most tests run a program once. Where rounding is tested, programs
# are compiled as users have them (cases.optimized). Releases of jaxlib from 0.11 on have no such emitters to leave out.
QUICK, AS_USERS = {"xla_backend_optimization_level": 0}, {"xla_backend_optimization_level": 3}
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    QUICK["xla_cpu_use_fusion_emitters"], AS_USERS["xla_cpu_use_fusion_emitters"] = False, True

# Read when jax starts; with several devices to shard over, and one thread to make the machine code of small programs.
FLAGS = {"xla_force_host_platform_device_count": 8, "xla_cpu_parallel_codegen_split_count": 1} | QUICK
FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in FLAGS.items())
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

"""How XLA makes machine code for the tests: quickly, or as users have it. Read before jax starts, so without jax."""

import importlib.metadata

# In a third of the time, as most tests run a program once. Where rounding is tested, programs are compiled as users
# have them (cases.optimized). Releases of jaxlib from 0.11 on have no such emitters to leave out.
QUICK, AS_USERS = {"xla_backend_optimization_level": 0}, {"xla_backend_optimization_level": 3}
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    QUICK["xla_cpu_use_fusion_emitters"], AS_USERS["xla_cpu_use_fusion_emitters"] = False, True


def xla_flags(**others):
    """As XLA_FLAGS takes them; with one thread to make the machine code of small programs."""
    flags = {"xla_cpu_parallel_codegen_split_count": 1} | QUICK | others
    return " ".join(f"--{name}={str(value).lower()}" for name, value in flags.items())

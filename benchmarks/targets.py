"""Programs for accelerators, compiled ahead of time on this CPU: nothing is run, so these are no timings.

Needs an environment with the compilers of all targets; `compiled.py` makes one.
"""

import math
import os

# Read when jax starts: the host is a CPU, and the compiler for TPUs is not to look for one.
os.environ |= {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_PLATFORMS": "cpu",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
}

from dataclasses import dataclass
from functools import cache

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding

from benchmarks import hlo

TOPOLOGIES = {"v5e": "v5e:2x2", "v6e": "v6e:2x2", "v5p": "v5p:2x2x1", "h100": "1x1x4"}

# As much of XLA's description of an H100 as its compiler needs to plan fusions. It is no model of time.
_H100 = """gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 threads_per_core_limit: 2048
  core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84942979072 cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  device_vendor: "NVIDIA Corporation" name: "h100" driver_version: "13.0.0" runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0" dnn_version: "9.10.0" }
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 patch: 0 } device_description_str: "h100"
"""


@cache
def devices(target):
    """Devices to compile for, described rather than present."""
    name = TOPOLOGIES.get(target, target)
    if target == "h100":
        return topologies.get_topology_desc(platform="cuda", topology=name, target_config=_H100).devices
    return topologies.get_topology_desc(name, "tpu").devices


@dataclass(frozen=True)
class Program:
    """What a compiled program moves; units are passes over `x`, as it is laid out on the device."""

    units: float
    conditional_units: float
    temporary_units: float
    kernels: int
    collectives: int
    conditional_collectives: int
    collective_bytes: int


def mesh_of(target, **sizes):
    """A mesh of described devices."""
    count = math.prod(sizes.values())
    return Mesh(np.array(devices(target)[:count]).reshape(*sizes.values()), tuple(sizes))


def program(target, f, args, shardings=None, mesh=None):
    """The totals of a function compiled for one device of a target, or for all of a mesh's."""
    if mesh is None:
        placed = SingleDeviceSharding(devices(target)[0])
    else:
        placed = jax.tree.map(lambda spec: NamedSharding(mesh, spec), shardings)
    compiled = jax.jit(f, in_shardings=placed).lower(*args).compile()
    text = compiled.as_text()
    found, unit = hlo.traffic(text), hlo.unit(text)
    memory = compiled.memory_analysis()
    return Program(
        found.moved / unit,
        found.in_conditionals / unit,
        (memory.temp_size_in_bytes if memory else 0) / unit,
        found.kernels,
        found.collectives.total(),
        found.collectives_in_conditionals.total(),
        found.collective_bytes,
    )

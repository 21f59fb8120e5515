"""What compiled programs move to and from device memory: TPU v5e, v6e, v5p and H100, by their compilers on this CPU.

These are programs, not timings: nothing is run on a device.
"""

import dataclasses
import itertools
import subprocess
import sys
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

import jaxnorm as jn
from benchmarks.cases import Case
from benchmarks.libraries import LIBRARIES
from benchmarks.libraries import rows as rows_by
from benchmarks.speed import with_vjp

NAMES = ("jaxnorm", "jaxnorm pallas", "flax", "flax stable")
TARGETS = ("v5e", "v6e", "v5p", "h100")
NETWORKS = ("v6e", "h100")
"""Those for which a norm is counted with what is around it, too."""

_IMAGES, _ROWS = (256, 56, 56, 64), (8192, 4096)
ALONE = [
    *(Case(kind, _IMAGES, dtype) for kind in ("batch", "instance", "group") for dtype in ("float32", "bfloat16")),
    *(Case(kind, _ROWS, dtype) for kind in ("layer", "rms") for dtype in ("float32", "bfloat16")),
]
"""Larger than the memory on a chip, but for rows in bfloat16 on a v6e."""
ROWS = [case for case in ALONE if case.kind in ("layer", "rms")]

BLOCKS = [
    (Case("batch", (256, 28, 28, 128), "bfloat16"), 1),
    (Case("batch", (256, 56, 56, 64), "bfloat16"), 1),
    (Case("batch", (256, 14, 14, 256), "bfloat16"), 3),
    (Case("group", (256, 32, 32, 256), "bfloat16"), 3),
    (Case("layer", _ROWS, "bfloat16"), None),
]
"""A case between two convolutions of a kernel size, or between two matrix products."""

_SHARE = 64
SHARDED = [("v6e", 4), ("h100", 4), ("v5e", 4), ("v5e:16x16", 256)]
HOW = ("jit", "shard_map")
"""A batch of so many examples on each device: of all that compilers know, or with its axis named."""


def environment():
    """The Python to run this in: this one where it has the compilers, else that of a virtual environment, made once."""
    if find_spec("libtpu") and find_spec("jax_cuda12_plugin"):
        return None
    folder = Path(".venv-compilers")
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        print(f"Installing the compilers for TPU and GPU into {folder} (once; some minutes) ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run(
            [*pip, f"jax[tpu]=={jax.__version__}", f"flax=={version('flax')}", "-e", ".[bench,suite]"], check=True
        )
        plugins = [f"{name}=={jax.__version__}" for name in ("jax-cuda12-plugin", "jax-cuda12-pjrt")]
        subprocess.run([*pip, "--no-deps", *plugins], check=True)
        (folder / "ready").touch()
    return python


def shapes(case):
    """The cotangent, and what a library takes, as shapes."""
    x, vector = jax.ShapeDtypeStruct(case.shape, case.dtype), jax.ShapeDtypeStruct((case.channels,), jnp.float32)
    return x, (x, vector, None if case.kind == "rms" else vector, vector, vector)


def has(library, case):
    """Whether a library has a norm: ours by the kernel that is named are for rows."""
    return library != "jaxnorm pallas" or case.kind in ("layer", "rms")


def _norm(library, case):
    return rows_by(case, "pallas") if library == "jaxnorm pallas" else LIBRARIES[library](case)


def alone(case, library, target):
    """Forward, and forward with backward."""
    from benchmarks.targets import program

    apply, (g, args) = _norm(library, case), shapes(case)
    return program(target, apply, args), program(target, with_vjp(apply), (g, *args))


def block(case, kernel, library, target):
    """conv → norm → relu (silu for group norm) → conv, or product + residual → norm → gelu of a product."""
    from benchmarks.targets import program

    norm, c = _norm(library, case), case.channels
    activation = jax.nn.silu if case.kind == "group" else jax.nn.relu
    x, (_, *vectors) = shapes(case)
    weight = jax.ShapeDtypeStruct((c, c) if kernel is None else (kernel, kernel, c, c), case.dtype)

    def conv(x, w):
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def images(x, w1, w2, scale, bias, *state):
        y, new = norm(conv(x, w1), scale, bias, *state)
        return conv(activation(y), w2), new

    def rows(x, w1, w2, scale, bias, *state):
        residual = x + x @ w1
        y, new = norm(residual, scale, bias, *state)
        return residual + y @ w2, new

    f, args = rows if kernel is None else images, (x, weight, weight, *vectors)
    return program(target, f, args), program(target, with_vjp(f, learned=5), (x, *args))


def sharded(how, library, target, devices):
    """Batch norm of a batch over several devices, by jit or by shard_map; forward, and with backward."""
    from benchmarks.targets import mesh_of, program

    case = Case("batch", (_SHARE * devices, *_IMAGES[1:]))
    mesh, (g, args) = mesh_of(target, batch=devices), shapes(case)
    split = (P("batch"), P(), P(), P(), P())
    if how == "jit":
        forward = LIBRARIES[library](case)
        both = with_vjp(forward)
    else:
        forward = LIBRARIES[library](case, axis_name="batch")
        both = jax.shard_map(
            with_vjp(forward), mesh=mesh, in_specs=(P("batch"), *split), out_specs=(P("batch"), P(), split[:3])
        )
        forward = jax.shard_map(forward, mesh=mesh, in_specs=split, out_specs=(P("batch"), P()))
    return (
        program(target, forward, args, split, mesh),
        program(target, both, (g, *args), (P("batch"), *split), mesh),
    )


def residual(case, library, target):
    """h = x + residual and y = norm(h), both wanted; forward, and with backward."""
    from benchmarks.targets import program

    x, (_, scale, bias, *_) = shapes(case)
    verb = jn.add_rms_norm if case.kind == "rms" else jn.add_layer_norm

    def apply(x, residual, scale, bias=None):
        if library.startswith("jaxnorm"):
            return verb(x, residual, scale, bias, implementation="pallas" if library == "jaxnorm pallas" else None)
        h = x + residual
        return LIBRARIES[library](case)(h, scale, bias, None, None)[0].astype(x.dtype), h

    def both(x, residual, gs, scale, bias=None):
        # The residual's cotangent is that of x.
        results, pull = jax.vjp(lambda x, *vectors: apply(x, residual, *vectors), x, scale, bias)
        results, gs = jax.lax.optimization_barrier((results, gs))
        return results, pull(gs)

    vectors = [scale] if bias is None else [scale, bias]
    return program(target, apply, (x, x, *vectors)), program(target, both, (x, x, (x, x), *vectors))


def sharded_rows(how, target):
    """Layer norm by kernels of rows over four devices, along both of their axes, with its backward pass."""
    from benchmarks.targets import mesh_of, program

    mesh, split = mesh_of(target, data=2, time=2), P("data", "time")
    x = jax.ShapeDtypeStruct((64, 512, 4096), "bfloat16")
    vector = jax.ShapeDtypeStruct((4096,), "float32")

    def step(g, x, scale, bias):
        y, pull = jax.vjp(partial(jn.layer_norm, implementation="pallas"), x, scale, bias)
        return y, pull(g)

    placed = (split, split, P(), P())
    if how == "shard_map":
        step = jax.shard_map(step, mesh=mesh, in_specs=placed, out_specs=(split, (split, P(), P())))
    return program(target, step, (x, x, vector, vector), placed, mesh)


def measure(done):
    """All tables, as lists of records. `done` is called with a few words after each program."""
    records = []

    def record(table, what, target, library, pair):
        forward, both = map(dataclasses.asdict, pair)
        row = {"table": table, "what": what, "target": target, "library": library, "forward": forward, "both": both}
        records.append(row)
        done(f"{target}: {what}, {library}")

    for table, name, target, library, pair in programs():
        record(table, name, target, library, pair())
    return records


def programs():
    """All pairs of programs, forward and with backward, to be compiled: table, name, target, library, and how."""
    for target, library in itertools.product(TARGETS, NAMES):
        for case in ALONE:
            if has(library, case):
                yield "alone", case.name, target, library, partial(alone, case, library, target)
        for case in ROWS if target in NETWORKS else ():
            yield "residual", f"residual + {case.name}", target, library, partial(residual, case, library, target)
        for case, kernel in BLOCKS if target in NETWORKS else ():
            between = "products" if kernel is None else f"convolutions of size {kernel}"
            if has(library, case):
                name = f"{case.name} between {between}"
                yield "block", name, target, library, partial(block, case, kernel, library, target)
    for (target, devices), library, how in itertools.product(SHARDED, NAMES, HOW):
        if library != "jaxnorm pallas":
            name = f"batch over {devices} devices, {how}"
            yield "collectives", name, target, library, partial(sharded, how, library, target, devices)

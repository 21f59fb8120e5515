"""Compiled programs for a CPU, counted: passes over the data and temporaries; exports; roundings. No timings."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import HOSTILE, optimized
from jax import export
from platforms import PLATFORMS

import jaxnorm as jn
from benchmarks import hlo
from benchmarks.cases import Case
from benchmarks.compiling import gradient
from benchmarks.libraries import ours
from benchmarks.speed import with_vjp

# Passes over x forward, and with the backward pass: Σ d, Σ d² and y; Σ g, Σ d g and dx.
CASES = {
    "batch": (4, 10),
    "instance": (4, 10),
    "group": (4, 10),
    "layer": (4, 10),
    "rms": (3, 8),
}
# With the backward pass in bfloat16: later compilers read more often, and still write nothing down.
LATER = {"instance": 11, "group": 11, "layer": 13, "rms": 10} if jax.__version_info__ >= (0, 11) else {}


def compiled(f, *args):
    """As users have it."""
    return optimized(f).lower(*args).compile()


def units(case, program):
    """Passes over x, and full-size temporaries."""
    return hlo.traffic(program.as_text()).moved / case.bytes, program.memory_analysis().temp_size_in_bytes / case.bytes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("channel_axis", [-1, 1])
@pytest.mark.parametrize("kind", CASES)
def test_passes_over_the_data_on_a_cpu(kind, channel_axis, dtype):
    shape = (4096, 768) if kind in ("layer", "rms") else (8, 28, 28, 128) if channel_axis == -1 else (8, 128, 28, 28)
    case = Case(kind, shape, dtype, channel_axis)
    if kind in ("layer", "rms") and channel_axis == 1:
        pytest.skip("rows have no layout")
    g, (x, scale, bias, *state) = case.data()
    # The running statistics as constants: those of a new state, of which the program need not ask whether they are far.
    apply = lambda x, scale, bias: ours(case)(x, scale, bias, *state)
    both = lambda g, x, scale, bias: with_vjp(apply)(g, x, scale, bias)
    programs = compiled(apply, x, scale, bias), compiled(both, g, x, scale, bias)
    forward, backward = CASES[kind]
    limits = forward, LATER.get(kind, backward) if dtype == "bfloat16" else backward
    for program, most in zip(programs, limits, strict=True):
        passes, temporaries = units(case, program)
        assert passes < 1.06 * most + 0.2
        assert temporaries < 0.2


@pytest.mark.parametrize("shape", [(256, 1, 1, 512), (256, 512)])
def test_axes_of_size_one_cost_nothing(shape):
    case = Case("batch", shape)
    g, args = case.data()
    passes, _ = units(case, compiled(with_vjp(ours(case)), g, *args))
    assert passes < 10.5


def test_one_export_serves_all_platforms():
    case = Case("batch", (8, 4))
    _, args = case.data()
    exported = export.export(jax.jit(ours(case)), platforms=["cpu", "cuda", "tpu"])(*args)
    y, _ = exported.call(*args)
    np.testing.assert_allclose(y, ours(case)(*args)[0], rtol=1e-6)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_batch_of_any_size_is_exported(name):
    (batch,) = export.symbolic_shape("batch")
    spec, shape = HOSTILE[name], (6, 4, 4, 8)
    state = spec.init(spec.features(shape))[1]
    norm = jax.jit(lambda x: spec.apply(jn.Affine(), state, x, train=True)[0])
    exported = export.export(norm)(jax.ShapeDtypeStruct((batch, *shape[1:]), jnp.float32))
    x = jax.random.normal(jax.random.key(0), shape)
    np.testing.assert_allclose(exported.call(x), norm(x), atol=1e-6)


def test_a_bfloat16_gradient_is_rounded_once():
    """Twice, where JAX adds what comes back through y and through its statistics."""
    x = jax.random.normal(jax.random.key(0), (64, 8), jnp.bfloat16)
    g = jax.random.normal(jax.random.key(1), (64, 8), jnp.bfloat16)
    pull = lambda x, g: jax.vjp(lambda x: jn.batch_norm(x, None, train=True)[0], x)[1](g.astype(x.dtype))[0]
    exact = jax.jit(pull)(x.astype(jnp.float32), g)
    rounded = jax.jit(pull)(x, g)
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_array_equal(rounded, exact.astype(jnp.bfloat16))


DROP_INS = {
    "BatchNorm": {"use_running_average": False},
    "InstanceNorm": {},
    "LayerNorm": {},
    "RMSNorm": {},
    "GroupNorm": {"num_groups": 4},
}


def counts(library, name):
    """Equations of the gradient of a network with eight norms, and instructions as lowered for each platform."""
    f, args = gradient(partial(getattr(library, name), **DROP_INS[name]), (8, 4, 4, 16), depth=8)
    traced = jax.jit(f).trace(*args)
    lowered = [traced.lower(lowering_platforms=(platform,)).as_text() for platform in PLATFORMS]
    return len(traced.jaxpr.eqns), *(program.count(" = ") for program in lowered)


@pytest.mark.once
@pytest.mark.parametrize("name", DROP_INS)
def test_a_network_is_no_larger_a_program_than_with_flax(name):
    """Norms that are alike are one function, in what is traced and in what is lowered."""
    (equations, *instructions), (most, *theirs) = (counts(library, name) for library in (jn.linen, nn))
    assert equations <= most
    for mine, flax in zip(instructions, theirs, strict=True):
        assert mine < 1.5 * flax

"""A folded layer does what the layer and its norm do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxnorm as jn

KEYS = jax.random.split(jax.random.key(0), 8)
POSITIONS = {1: "W", 2: "HW", 3: "DHW"}


def norm(channels, **options):
    """A norm, its parameters and a state that is not the initial one; parts of it may be left out."""
    spec = jn.BatchNorm(**options)
    params, _ = spec.init(channels)
    params = jax.tree.map(lambda v: v + 0.5 * jax.random.normal(KEYS[0], v.shape), params)
    state = jn.RunningStats(jax.random.normal(KEYS[2], (channels,)) * 2, 0.5 + jax.random.uniform(KEYS[3], (channels,)))
    return spec, params, state


def plus(y, bias):
    return y if bias is None else y + bias.reshape(*[1] * (y.ndim - 1), -1)


def conv(x, kernel, bias=None, *, groups=1, transposed=False, padding="VALID", **options):
    """Channels last; any number of positions."""
    positions = POSITIONS[x.ndim - 2]
    layout = f"N{positions}C", f"{positions}IO", f"N{positions}C"
    ones = [1] * len(positions)
    if transposed:
        return plus(
            lax.conv_transpose(x, kernel, options.get("strides", ones), padding, dimension_numbers=layout), bias
        )
    strides = options.pop("strides", ones)
    y = lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=layout, feature_group_count=groups, **options
    )
    return plus(y, bias)


LAYERS = {
    "1-D": ((9, 4), (3, 4, 6), {}),
    "2-D": ((9, 8, 4), (3, 3, 4, 6), {}),
    "3-D": ((5, 6, 5, 2), (2, 2, 2, 2, 6), {}),
    "grouped": ((9, 8, 4), (3, 3, 2, 6), {"groups": 2}),
    "depthwise": ((9, 8, 6), (3, 3, 1, 6), {"groups": 6}),
    "depthwise, twice": ((9, 8, 3), (3, 3, 1, 6), {"groups": 3}),
    "dilated": ((9, 8, 4), (3, 3, 4, 6), {"rhs_dilation": (2, 2)}),
    "strided": ((9, 8, 4), (3, 3, 4, 6), {"strides": (2, 2)}),
}
each = pytest.mark.parametrize("name", LAYERS)
biases = pytest.mark.parametrize("has_bias", [False, True])


def close(got, want, **tolerance):
    np.testing.assert_allclose(got, want, **{"rtol": 1e-5, "atol": 1e-5, **tolerance})


def layer(name, has_bias):
    shape, kernel, options = LAYERS[name]
    bias = jax.random.normal(KEYS[6], kernel[-1:]) if has_bias else None
    return jax.random.normal(KEYS[4], (2, *shape)), 0.3 * jax.random.normal(KEYS[5], kernel), bias, options


@each
@biases
@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_after_a_convolution(name, has_bias, padding):
    x, kernel, bias, options = layer(name, has_bias)
    spec, params, state = norm(6)
    want, _ = spec.apply(params, state, conv(x, kernel, bias, padding=padding, **options), train=False)
    close(conv(x, *jn.fold(spec, params, state, kernel, bias), padding=padding, **options), want)


@each
@biases
def test_before_a_convolution(name, has_bias):
    x, kernel, bias, options = layer(name, has_bias)
    spec, params, state = norm(x.shape[-1])
    y, _ = spec.apply(params, state, x, train=False)
    want = conv(y, kernel, bias, **options)
    folded = jn.fold(spec, params, state, kernel, bias, before=True, groups=options.get("groups", 1))
    close(conv(x, *folded, **options), want, atol=3e-5)


@biases
def test_beside_a_dense_layer(has_bias):
    x, kernel = jax.random.normal(KEYS[4], (7, 5)), jax.random.normal(KEYS[5], (5, 6))
    bias = jax.random.normal(KEYS[6], (6,)) if has_bias else None
    dense = lambda x, kernel, bias: plus(x @ kernel, bias)
    spec, params, state = norm(6)
    want, _ = spec.apply(params, state, dense(x, kernel, bias), train=False)
    close(dense(x, *jn.fold(spec, params, state, kernel, bias)), want)
    spec, params, state = norm(5)
    want = dense(spec.apply(params, state, x, train=False)[0], kernel, bias)
    close(dense(x, *jn.fold(spec, params, state, kernel, bias, before=True)), want)


def test_after_a_transposed_convolution():
    x, kernel = jax.random.normal(KEYS[4], (2, 9, 8, 4)), jax.random.normal(KEYS[5], (3, 3, 4, 6))
    spec, params, state = norm(6)
    for strides in ((1, 1), (2, 2)):
        want, _ = spec.apply(params, state, conv(x, kernel, transposed=True, strides=strides), train=False)
        close(conv(x, *jn.fold(spec, params, state, kernel), transposed=True, strides=strides), want)


def test_layouts_of_pytorch():
    """Kernels have outputs first; in grouped transposed convolutions inputs come first, and outputs are of a group."""
    x, kernel, bias, _ = layer("grouped", True)
    spec, params, state = norm(6)
    want = jn.fold(spec, params, state, kernel, bias)
    got = jn.fold(spec, params, state, kernel.transpose(3, 2, 0, 1), bias, output_axis=0, input_axis=1)
    close(got[0].transpose(2, 3, 1, 0), want[0])
    close(got[1], want[1])
    # Two groups: inputs 0 and 1 make outputs 0 to 2, inputs 2 and 3 make outputs 3 to 5.
    kernel, x = jax.random.normal(KEYS[5], (4, 3)), jax.random.normal(KEYS[4], (7, 4))
    grouped = lambda x, kernel: jnp.concatenate([x[:, :2] @ kernel[:2], x[:, 2:] @ kernel[2:]], 1)
    want, _ = spec.apply(params, state, grouped(x, kernel), train=False)
    kernel, bias = jn.fold(spec, params, state, kernel, output_axis=1, input_axis=0, groups=2)
    close(plus(grouped(x, kernel), bias), want)


SPECS = {
    "no scale": {"use_scale": False},
    "no bias": {"use_bias": False},
    "neither": {"use_scale": False, "use_bias": False},
    "offset": {"scale_offset": 1.0},
    "epsilon": {"epsilon": 0.3},
}


@pytest.mark.parametrize("name", SPECS)
def test_any_norm_by_running_statistics(name):
    x, kernel, bias, _ = layer("2-D", True)
    spec, params, state = norm(6, **SPECS[name])
    z = conv(x, kernel, bias)
    want, _ = spec.apply(params, state, z, train=False)
    tracking = jn.InstanceNorm(track=True, **SPECS[name])
    for other in (spec, jn.freeze(spec), tracking):
        close(conv(x, *jn.fold(other, params, state, kernel, bias)), want)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_kernel_keeps_its_dtype(dtype):
    _, kernel, bias, _ = layer("2-D", True)
    spec, params, state = norm(6)
    want = jn.fold(spec, params, state, kernel, bias)
    got = jn.fold(spec, params, state, kernel.astype(dtype), bias.astype(dtype))
    assert [v.dtype for v in got] == [jnp.dtype(dtype)] * 2
    for a, b in zip(got, want, strict=True):
        close(np.float32(a), b, rtol=2**-6, atol=2**-6)


def test_a_constant_channel_and_a_corrupt_one():
    """As in evaluation: no deviation without a variance and ε; no plausible number of a variance below 0."""
    spec, params, state = norm(6, epsilon=0.0)
    state = state._replace(var=state.var.at[0].set(0).at[1].set(-1))
    kernel, bias = jn.fold(spec, params, state, jnp.ones((5, 6)))
    assert (kernel[:, 0] == 0).all()
    assert bias[0] == params.bias[0]
    assert np.isnan(kernel[:, 1]).all()
    assert np.isfinite(kernel[:, 2:]).all()


def test_quantization_aware_training_rounds_the_kernel_of_a_batch():
    """Moments of a batch fold the norm as it trains; gradients reach the kernel through them."""
    x, kernel, bias, _ = layer("2-D", True)
    spec, params, state = norm(6)

    def folded(kernel, params):
        found = jn.moments(conv(x, kernel, bias), (0, 1, 2))
        return conv(x, *jn.fold(spec, params, found, kernel, bias)), jn.update_running(
            state, found, momentum=spec.momentum
        )

    def trained(kernel, params):
        return spec.apply(params, state, conv(x, kernel, bias), train=True)

    (y, new), (want, want_new) = folded(kernel, params), trained(kernel, params)
    close(y, want, atol=1e-4)
    jax.tree.map(close, new, want_new)
    weight = jnp.cos(jnp.arange(float(y.size))).reshape(y.shape)
    grads = [
        jax.grad(lambda *args, f=f: (f(*args)[0] * weight).sum(), (0, 1))(kernel, params) for f in (folded, trained)
    ]
    jax.tree.map(lambda got, want: close(got, want, rtol=1e-3, atol=1e-3), *grads)


@pytest.mark.parametrize("trained", [False, True])
def test_parameters_of_a_frozen_norm_get_no_gradient(trained):
    _, kernel, bias, _ = layer("2-D", True)
    spec, params, state = norm(6)
    loss = lambda params, kernel: sum(
        (v**2).sum() for v in jn.fold(jn.freeze(spec, trained=trained), params, state, kernel, bias)
    )
    of_params, of_kernel = jax.grad(loss, (0, 1))(params, kernel)
    assert all((v != 0).all() == trained for v in of_params)
    assert (of_kernel != 0).all()


def test_jit_vmap_and_float64():
    _, kernel, bias, _ = layer("2-D", True)
    spec, params, state = norm(6)
    want = jn.fold(spec, params, state, kernel, bias)
    jax.tree.map(close, jax.jit(jn.fold)(spec, params, state, kernel, bias), want)
    stacked = jax.tree.map(lambda v: jnp.stack([v, 2 * v]), (params, state))
    many = jax.vmap(lambda params, state: jn.fold(spec, params, state, kernel, bias))(*stacked)
    jax.tree.map(lambda got, want: close(got[0], want), many, want)
    with jax.enable_x64(True):
        assert jn.fold(spec, params, state, jnp.float64(kernel))[0].dtype == jnp.float64

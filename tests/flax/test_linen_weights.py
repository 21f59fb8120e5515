"""Layers of linen by normalized weights: Flax's answers, and what Flax's have no answer for."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import close, under

import jaxnorm as jn

pytestmark = pytest.mark.long
X = jax.random.normal(jax.random.key(0), (4, 6, 5, 3))
KEY = jax.random.key(1)


class Net(nn.Module):
    """A convolution and a dense layer, each in a wrapper."""

    of: object
    norm: str
    options: tuple = ()

    @nn.compact
    def __call__(self, x, **kwargs):
        wrap = lambda layer: getattr(self.of, self.norm)(layer, **dict(self.options))
        x = nn.relu(wrap(nn.Conv(8, (3, 3)))(x, **kwargs))
        return wrap(nn.Dense(4, use_bias=False))(x.mean((1, 2)), **kwargs)


CASES = {
    "spectral": ("SpectralNorm", (), {"update_stats": True}),
    "spectral steps": ("SpectralNorm", (("n_steps", 4),), {"update_stats": False}),
    "spectral bfloat16": ("SpectralNorm", (("dtype", jnp.bfloat16),), {"update_stats": True}),
    "weight": ("WeightNorm", (), {}),
    "weight of all": ("WeightNorm", (("feature_axes", None),), {}),
    "weight of two axes": ("WeightNorm", (("feature_axes", (0, -1)),), {}),
    "weight and bias": ("WeightNorm", (("variable_filter", None),), {}),
    "weight without scale": ("WeightNorm", (("use_scale", False), ("epsilon", 1e-3)), {}),
}


@pytest.mark.parametrize("name", CASES)
@jax.numpy_dtype_promotion("standard")  # which Flax's layers need in bfloat16
def test_as_flax(name):
    """Variables by name and value, y, gradients, and what is written."""
    norm, options, kwargs = CASES[name]
    ours, theirs = (Net(of, norm, options) for of in (jn.linen, nn))
    variables = theirs.init(KEY, X, **kwargs)
    # Flax begins with normalized weights: these are rounded.
    jax.tree.map(lambda a, b: close(a, b, 1e-6), ours.init(KEY, X, **kwargs), variables)

    def run(net):
        def loss(params):
            y, new = net.apply({**variables, "params": params}, X, mutable=["batch_stats"], **kwargs)
            return jnp.sin(y.astype(jnp.float32)).sum(), (y, new)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])

    got, want = run(ours), run(theirs)
    tolerance = 2e-2 if "bfloat16" in name else 2e-5
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, float), np.asarray(b, float), rtol=tolerance, atol=tolerance
        ),
        got,
        want,
    )
    assert jax.tree.map(jnp.result_type, got) == jax.tree.map(jnp.result_type, want)


@pytest.mark.parametrize("norm", ["SpectralNorm", "WeightNorm"])
def test_weights_of_zero_have_no_nan(norm):
    kwargs = {"update_stats": True} if norm == "SpectralNorm" else {}
    net = Net(jn.linen, norm, (("epsilon", 0.0),))
    variables = net.init(KEY, X, **kwargs)
    zeros = jax.tree.map(jnp.zeros_like, variables["params"])

    def loss(params):
        y, new = net.apply({**variables, "params": params}, X, mutable=["batch_stats"], **kwargs)
        return y.sum(), (y, new)

    grads, (y, new) = jax.grad(loss, has_aux=True)(zeros)
    np.testing.assert_array_equal(y, 0)
    assert all(jnp.isfinite(v).all() for v in jax.tree.leaves((grads, new)))
    if norm == "SpectralNorm":
        # The vectors stay usable for when there are weights again.
        for name, u in new["batch_stats"]["SpectralNorm_0"].items():
            assert jnp.abs(u).sum() > 0 or name.endswith("sigma")


def test_the_weights_themselves_stay():
    layer = jn.linen.SpectralNorm(nn.Dense(4))
    variables = layer.init(KEY, X, update_stats=False)
    variables = {**variables, "params": jax.tree.map(lambda w: 3 * w, variables["params"])}
    _, new = layer.apply(variables, X, update_stats=True, mutable=True)
    jax.tree.map(np.testing.assert_array_equal, new["params"], variables["params"])
    assert not np.array_equal(*(v["batch_stats"]["layer_instance/kernel/u"] for v in (new, variables)))


def test_the_flag_is_known_when_tracing():
    layer = jn.linen.SpectralNorm(nn.Dense(4))
    variables = layer.init(KEY, X, update_stats=False)
    with pytest.raises(TypeError, match="SpectralNorm: update_stats is traced"):
        jax.jit(lambda flag: layer.apply(variables, X, update_stats=flag))(True)


class ByHand(nn.Module):
    """A convolution by weights that are standardized in the call."""

    scaled: bool = False

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, 3, 8))
        gain = self.param("gain", nn.initializers.ones, (8,)) / 27**0.5 if self.scaled else None
        hat = jn.standardize_weights(kernel, gain, epsilon=1e-6)
        y = jax.lax.conv_general_dilated(x, hat, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y + self.param("bias", nn.initializers.zeros, (8,)).reshape(1, 1, 1, 8)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_convolution_by_standardized_weights(scaled):
    layer = jn.linen.StdConv(8, (3, 3), strides=2, scaled=scaled)
    variables = layer.init(KEY, X)
    assert {*variables["params"]} == {"kernel", "bias", *(["gain"] if scaled else [])}
    # The parameter is what nn.Conv has: a checkpoint of one is one of the other.
    kernel = nn.Conv(8, (3, 3)).init(KEY, X)["params"]["kernel"]
    np.testing.assert_array_equal(variables["params"]["kernel"], kernel)
    loss = lambda net: lambda variables: jnp.sin(net.apply(variables, X)).sum()
    for f in (lambda net: net.apply(variables, X), lambda net: jax.grad(loss(net))(variables)):
        jax.tree.map(lambda a, b: close(a, b, 2e-5), f(layer), f(ByHand(scaled)))


def test_a_pretrained_kernel_of_timm():
    case = under("timm_norms", "StdConv2d")
    kernel = jnp.transpose(jnp.float32(case["param weight"]), (2, 3, 1, 0))
    layer = jn.linen.StdConv(4, (3, 3), padding=1, use_bias=False)
    y = layer.apply({"params": {"kernel": kernel}}, jnp.moveaxis(jnp.float32(case["x"]), 1, -1))
    close(jnp.moveaxis(y, -1, 1), case["y"], 2e-5)


def test_a_norm_after_it_does_not_fold():
    """Its kernel is computed: there is no parameter to fold into."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jn.linen.BatchNorm(use_running_average=True)(jn.linen.StdConv(8, (3, 3))(x))

    variables = Block().init(KEY, X)
    apply, folded, report = jn.linen.fold(Block(), variables, X)
    assert not report.folded if hasattr(report, "folded") else report
    close(apply(folded, X), Block().apply(variables, X), 1e-5)


@pytest.mark.parametrize("axes", [(-1, 0), (1, -1), (0,)])
def test_feature_axes_in_any_order(axes):
    ours, theirs = (of.WeightNorm(nn.Dense(5), feature_axes=axes) for of in (jn.linen, nn))
    x = jnp.ones((2, 4))
    variables = theirs.init(KEY, x)
    close(ours.apply(variables, x), theirs.apply(variables, x), 1e-6)


@pytest.mark.parametrize("norm", ["SpectralNorm", "WeightNorm"])
def test_boxed_kernels_have_the_same_names(norm):
    kwargs = {"update_stats": False} if norm == "SpectralNorm" else {}
    boxed = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    layer = getattr(jn.linen, norm)(nn.Dense(4, kernel_init=boxed))
    variables = layer.init(KEY, X, **kwargs)
    close(layer.apply(nn.meta.unbox(variables), X, **kwargs), layer.apply(variables, X, **kwargs), 1e-6)


def test_a_layer_with_a_state_within():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            y = nn.Dense(4)(x)
            self.sow("intermediates", "y", y)
            return jn.linen.BatchNorm(use_running_average=not train, momentum=0.5)(y)

    layer = jn.linen.WeightNorm(Layer())
    variables = layer.init(KEY, X, False)
    _, new = layer.apply(variables, X, True, mutable=["batch_stats", "intermediates"])
    (sown,) = new["intermediates"]["layer_instance"]["y"]
    (stats,) = jax.tree.leaves(new["batch_stats"], is_leaf=lambda v: "mean" in v)
    close(stats["mean"], 0.5 * sown.mean((0, 1, 2)), 1e-5)
    exact = jn.linen.recalibrate(layer, variables, [X], train=False)
    (stats,) = jax.tree.leaves(exact["batch_stats"], is_leaf=lambda v: "mean" in v)
    close(stats["mean"], sown.mean((0, 1, 2)), 1e-5)

"""Norms of linen models that stay, and why; models whose parts are compiled, or called in unusual ways."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from models import says

import jaxnorm as jn

X = jax.random.normal(jax.random.key(0), (2, 6, 6, 4)) * 2 + 1
norm = partial(jn.linen.BatchNorm, use_running_average=True)
by_spec = partial(jn.linen.Norm, train=False)


class Scaled(nn.Conv):
    """A convolution that makes something else of its kernel."""

    def param(self, name, *args):
        return 2 * super().param(name, *args)


class Doubled(nn.BatchNorm):
    """A norm that gives something else."""

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        mean = self.variable("batch_stats", "mean", jnp.zeros, scale.shape)
        self.variable("batch_stats", "var", jnp.ones, scale.shape)
        return 2 * x * scale.reshape(1, 1, 1, -1) - mean.value.reshape(1, 1, 1, -1)


class Called(nn.Module):
    """A model whose code is a function of the module."""

    code: object

    @nn.compact
    def __call__(self, x):
        return self.code(self, x)


def twice(_, x):
    conv, bn = nn.Conv(4, (3, 3), name="conv"), norm(name="bn")
    return bn(conv(bn(conv(x))))


def shared_layer(_, x):
    conv = nn.Conv(4, (3, 3), name="conv")
    return norm(name="bn")(conv(conv(x)))


def elsewhere(_, x):
    y = nn.Conv(4, (3, 3), name="conv")(x)
    return norm(name="bn")(y) + y


def scanned(_, x):
    class Body(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return norm(name="bn")(nn.Conv(4, (3, 3), name="conv")(x)), None

    scan = nn.scan(Body, {"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=2)
    return scan(name="scan")(x, None)[0]


def masked(_, x):
    return norm(name="bn")(nn.Conv(4, (3, 3), mask=jnp.ones((3, 3, 4, 4)), name="conv")(x))


def read_elsewhere(module, x):
    layer = nn.Dense(4, name="dense")
    y = norm(name="bn")(layer(x))
    return y + layer.variables["params"]["kernel"].sum()


def computed(_, x):
    squared = nn.map_variables(nn.Dense, "params", lambda v: jax.tree.map(jnp.square, v), init=True)
    return norm(name="bn")(squared(4, name="dense")(x))


then = lambda layer, bn: lambda _, x: bn()(layer()(x))
conv = lambda **options: nn.Conv(4, (3, 3), name="conv", **options)
# What is done, and what the report says of it.
KEPT = {
    "after relu": (lambda _, x: norm(name="bn")(nn.relu(conv()(x))), "straight before it is no layer, but relu"),
    "first": (lambda _, x: nn.relu(norm(name="bn")(x)), "the input of the model"),
    "before zeros": (lambda _, x: conv()(norm(name="bn")(x)), "pads with zeros"),
    "before a transposed one": (
        lambda _, x: nn.ConvTranspose(4, (3, 3), padding="VALID")(norm(name="bn")(x)),
        "transposed convolution",
    ),
    "before a dilated input": (
        lambda _, x: conv(padding=0, input_dilation=(2, 1))(norm(name="bn")(x)),
        r"input_dilation=\(2, 1\)",
    ),
    "called twice": (twice, "bn is called 2 times"),
    "shared layer": (shared_layer, "conv is called 2 times"),
    "used elsewhere": (elsewhere, "What conv gives is used elsewhere"),
    "a subclass": (then(lambda: Scaled(4, (3, 3)), lambda: norm(name="bn")), "is no layer, but"),
    "a masked kernel": (masked, "mask for its kernel"),
    "a subclass of a norm": (then(conv, lambda: Doubled(name="bn")), "Doubled is a class of its own"),
    "weight norm": (lambda _, x: norm(name="bn")(nn.WeightNorm(conv())(x)), "no layer, but|are computed"),
    "weight norm, after": (
        lambda _, x: nn.WeightNorm(nn.Conv(4, (3, 3), padding=0))(norm(name="bn")(x)),
        "Variables of .* are computed",
    ),
    "read elsewhere": (read_elsewhere, "Variables of dense are computed, shared"),
    "computed": (computed, "Variables of .* are computed"),
    "channels first": (then(conv, lambda: norm(axis=1, name="bn")), r"along axis 1 of data of shape \(2, 6, 6, 4\)"),
    "channels first, by spec": (then(conv, lambda: by_spec(jn.BatchNorm(channel_axis=1), name="bn")), "along axis 1"),
    "layer norm": (then(conv, lambda: nn.LayerNorm(name="bn")), "LayerNorm is not by running"),
    "instance norm": (then(conv, lambda: by_spec(jn.InstanceNorm(), name="bn")), "InstanceNorm is not by running"),
    "a norm before": (lambda _, x: norm(name="bn")(nn.LayerNorm()(conv()(x))), "LayerNorm_0, a norm"),
    "a scale in the call": (
        lambda _, x: by_spec(jn.BatchNorm(use_scale=False), name="bn")(conv()(x), scale=2 * jnp.ones(4)),
        "scale or a bias in its call",
    ),
    "another axis": (
        lambda _, x: nn.DenseGeneral(5, axis=-2)(norm(name="bn")(x[:, :4, :4])),
        "axis=-2",
    ),
    "other arithmetic": (
        then(lambda: nn.Dense(4, dot_general=lambda *args, **kwargs: jax.lax.dot_general(*args, **kwargs)),
             lambda: norm(name="bn")),
        "has dot_general=",
    ),
    "narrow arithmetic": (
        lambda _, x: nn.Dense(4, dtype=jnp.bfloat16, name="dense")(norm(name="bn")(x)),
        "dense computes in bfloat16 what comes as float32",
    ),
    "several outputs": (
        lambda _, x: norm(name="bn")(nn.DenseGeneral((2, 4))(x)),
        "outputs along several axes",
    ),
}  # fmt: skip


def trained(model):
    variables = model.init(jax.random.key(1), X)
    return jax.tree.map(lambda v: v * 1.5 + 0.25, variables)


@pytest.mark.parametrize("name", KEPT)
def test_what_stays(name):
    code, why = KEPT[name]
    model = Called(code)
    variables = trained(model)
    apply, same, report = jn.linen.fold(model, variables, X)
    assert not report.folded
    says(lambda: raising(report.kept["bn"]), why)
    jax.tree.map(np.testing.assert_array_equal, same, variables)
    np.testing.assert_array_equal(apply(same, X), model.apply(variables, X))


def raising(text):
    raise ValueError(text)


def test_what_stays_in_a_scan():
    model = Called(scanned)
    variables = trained(model)
    apply, same, report = jn.linen.fold(model, variables, X)
    assert "in a scan" in report.kept["scan.bn"]
    np.testing.assert_array_equal(apply(same, X), model.apply(variables, X))
    assert str(report).startswith("scan.bn stays: ")


@pytest.mark.parametrize("lift", [nn.jit, nn.remat])
def test_parts_that_are_compiled_or_recomputed(lift):
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return norm()(nn.Conv(4, (3, 3))(x))

    model = Called(lambda _, x: lift(Block)(name="b")(nn.relu(lift(Block)(name="a")(x))))
    variables = trained(model)
    want = model.apply(variables, X)
    apply, folded, report = jn.linen.fold(model, variables, X)
    assert report.folded == {"a.BatchNorm_0": "a.Conv_0", "b.BatchNorm_0": "b.Conv_0"}
    np.testing.assert_allclose(apply(folded, X), want, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(jax.jit(apply)(folded, X[:1]), want[:1], rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(model.apply(variables, X), want)


class Flagged(nn.Module):
    @nn.compact
    def __call__(self, x, scale=1.0, *, train: bool):
        x = nn.Dense(4)(x) * scale if scale != 1.0 else nn.Dense(4)(x)
        x = nn.BatchNorm(use_running_average=not train)(x=x)
        return nn.Dropout(0.5, deterministic=not train)(x)

    def half(self, x, train: bool = False):
        return self(x, train=train) / 2


def test_a_model_is_told_to_evaluate():
    model = Flagged()
    variables = model.init(jax.random.key(1), X, train=False)
    for batch in (X, (X,), {"x": X}, (X, 1.0), {"x": X, "train": False}):
        apply, folded, report = jn.linen.fold(model, variables, batch)
        assert report.folded == {"BatchNorm_0": "Dense_0"}
        np.testing.assert_allclose(apply(folded, X, train=False), model.apply(variables, X, train=False), atol=1e-5)
    *_, report = jn.linen.fold(model, variables, X, scale=2.0)
    assert "but mul" in report.kept["BatchNorm_0"]
    apply, folded, _ = jn.linen.fold(model, variables, X, method="half")
    want = model.apply(variables, X, method="half")
    np.testing.assert_allclose(apply(folded, X, method="half"), want, atol=1e-5)
    says(lambda: jn.linen.fold(model, variables, X, train=True), "told to train", "train=False")
    says(lambda: jn.linen.fold(model, variables, (X, 1.0, 3)), "linen.fold: a batch gives the model 3 arguments")


def test_frozen_norms_and_other_dtypes():
    """A frozen norm needs no flag. A folded norm still gives the dtype that it gave."""
    model = nn.Sequential([nn.Dense(4, dtype=jnp.bfloat16), jn.linen.Norm(jn.freeze(jn.BatchNorm()), train=True)])
    variables = trained(model)
    apply, folded, report = jn.linen.fold(model, variables, X)
    assert report.folded == {"layers_1": "layers_0"}
    want = model.apply(variables, X)
    got = apply(folded, X)
    assert got.dtype == want.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(got), np.float32(want), rtol=0.02, atol=0.1)
    model = nn.Sequential([nn.Dense(4, dtype=jnp.bfloat16), norm()])
    with jax.numpy_dtype_promotion("standard"):
        variables = trained(model)
        apply, folded, _ = jn.linen.fold(model, variables, X)
        assert apply(folded, X).dtype == model.apply(variables, X).dtype == jnp.float32


def test_metadata_of_variables():
    """Kernels with names of axes, as for sharding."""
    init = nn.with_partitioning(nn.initializers.lecun_normal(), ("a", "b"))
    model = nn.Sequential([nn.Dense(4, kernel_init=init), norm()])
    variables = model.init(jax.random.key(1), X)
    apply, folded, report = jn.linen.fold(model, variables, X)
    assert report.folded == {"layers_1": "layers_0"}
    np.testing.assert_allclose(apply(folded, X), model.apply(variables, X), atol=1e-5)


def test_another_method_is_another_model():
    model = Flagged()
    variables = model.init(jax.random.key(1), X, train=False)
    apply, folded, _ = jn.linen.fold(model, variables, X)
    says(lambda: apply(folded, X, method="half"), "method='half', and the model was folded for method=None")


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return norm(name="bn")(nn.Dense(4)(x))


Jitted = nn.jit(Block)


def test_traces_that_are_there_before():
    """A class under `nn.jit` keeps what it was traced with: not for another model, and not for the next fold."""
    first = Called(lambda _, x: Jitted(name="a")(x))
    second = Called(lambda _, x: Jitted(name="a")(norm(name="bn")(nn.tanh(nn.Dense(4, name="d")(x)))))
    twice = Called(lambda _, x: Jitted(name="b")(nn.relu(Jitted(name="a")(x))))
    for model in (first, second, twice, first):
        variables = trained(model)
        want = model.apply(variables, X)
        apply, folded, report = jn.linen.fold(model, variables, X)
        assert {*report.folded, *report.kept} >= {"a.bn"}
        if model is twice:
            assert {*report.folded, *report.kept} == {"a.bn", "b.bn"}
        np.testing.assert_allclose(apply(folded, X), want, rtol=1e-5, atol=1e-4)
        np.testing.assert_array_equal(model.apply(variables, X), want)


def test_what_a_model_writes_down():
    """Statistics of a layer in a collection of its own are read by others, too."""

    def caching(module, x):
        y = nn.Dense(4, name="dense")(x)
        module.variable("cache", "y", jnp.zeros_like, y).value = y
        return norm(name="bn")(y)

    model = Called(caching)
    variables = trained(model)
    _, _, report = jn.linen.fold(model, variables, X)
    assert "What dense gives is used elsewhere" in report.kept["bn"]


def test_a_layer_that_shares_the_scope_of_its_model():
    class Shared(nn.Module):
        def setup(self):
            self.dense, self.bn = nn.Dense(4), norm()
            nn.share_scope(self, self.dense)

        def __call__(self, x):
            return self.bn(self.dense(x))

    model = Shared()
    variables = trained(model)
    apply, folded, report = jn.linen.fold(model, variables, X)
    assert len(report.folded) == 1
    np.testing.assert_allclose(apply(folded, X), model.apply(variables, X), rtol=1e-5, atol=1e-4)

"""What is said of modules that are made or called in a way that does not fit, and what looked like it and works."""

from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import KEY, SPECS, X, each_name, says

import jaxnorm as jn


@each_name
def test_features_of_a_module_of_nnx_without_parameters(name):
    norm = jn.nnx.Norm(SPECS[name](use_scale=False, use_bias=False), 64)
    says(lambda: norm(jnp.ones((4, 5, 32))), "64", "32", error=ValueError)
    assert norm(jax.random.normal(KEY, (4, 5, 64))).std() > 0.9


@pytest.mark.parametrize("theirs", [nn.BatchNorm(), nn.LayerNorm(), nn.GroupNorm(4)], ids=lambda m: type(m).__name__)
def test_a_module_of_flax_in_the_place_of_a_spec(theirs):
    """Both have `apply`; the message says which spec it should have been."""
    name = type(theirs).__name__
    says(lambda: jn.linen.Norm(theirs, train=True).init(KEY, X), r"linen\.Norm", "spec", rf"(jaxnorm|jn)\.{name}\(")
    module = getattr(nnx, name)(8, rngs=nnx.Rngs(0), **({"num_groups": 4} if name == "GroupNorm" else {}))
    says(lambda: jn.nnx.Norm(module, 8), r"nnx\.Norm", "spec", rf"(jaxnorm|jn)\.{name}\(")


@pytest.mark.parametrize("module", [jn.linen, jn.nnx], ids=["linen", "nnx"])
def test_adapters_show_no_internals(module):
    norms = {"BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "Norm", "RMSNorm", "recalibrate"}
    shown = {name for name in dir(module) if not name.startswith("_")}
    assert norms <= set(module.__all__)
    assert shown <= set(module.__all__)
    for name in module.__all__:
        assert not hasattr(getattr(module, name), "__path__"), name
        assert getattr(module, name).__module__.startswith("jaxnorm"), name


@dataclass(frozen=True)
class ZeroInit:
    """A user's spec, that starts at 0: any class with `init` and `apply`."""

    inner: jn.LayerNorm = jn.LayerNorm()  # noqa: RUF009

    def init(self, features, *args, **kwargs):
        params, state = self.inner.init(features, *args, **kwargs)
        return params._replace(scale=0 * params.scale, bias=params.bias + 3), state

    def apply(self, params, state, x, *, train, **kwargs):
        return self.inner.apply(params, state, x, train=train, **kwargs)


def test_the_scale_and_bias_that_a_spec_starts_with():
    """A zero-initialised norm is zero in both kinds of modules, unless an initializer says otherwise."""
    module = jn.linen.Norm(ZeroInit(), train=True)
    y, variables = module.init_with_output(KEY, X)
    np.testing.assert_array_equal(variables["params"]["scale"], np.zeros(8))
    np.testing.assert_array_equal(variables["params"]["bias"], np.full(8, 3))
    np.testing.assert_array_equal(y, np.full(X.shape, 3))
    norm = jn.nnx.Norm(ZeroInit(), 8)
    np.testing.assert_array_equal(norm(X), np.full(X.shape, 3))
    ones = nn.initializers.ones
    given = jn.linen.Norm(ZeroInit(), train=True, scale_init=ones).init(KEY, X)["params"]
    np.testing.assert_array_equal(given["scale"], np.ones(8))
    np.testing.assert_array_equal(given["bias"], np.full(8, 3))
    given = jn.nnx.Norm(ZeroInit(), 8, nnx.Rngs(0), scale_init=ones)
    np.testing.assert_array_equal(given.scale[...], np.ones(8))
    np.testing.assert_array_equal(given.bias[...], np.full(8, 3))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("BatchNorm", {}),
        ("BatchNorm", {"use_scale": False}),
        ("BatchNorm", {"use_scale": False, "use_bias": False}),
        ("LayerNorm", {}),
        ("LayerNorm", {"use_bias": False}),
        ("RMSNorm", {}),
        ("GroupNorm", {}),
        ("InstanceNorm", {}),
    ],
    ids=str,
)
def test_later_layers_start_as_beside_a_norm_of_flax(name, arguments):
    """A norm draws as many keys as Flax's: every other weight of a model is the same, from the same seed."""

    def weights(norm):
        rngs = nnx.Rngs(0)
        before, _, after = nnx.Linear(8, 8, rngs=rngs), norm(rngs), nnx.Linear(8, 4, rngs=rngs)
        return before.kernel[...], after.kernel[...]

    theirs = partial(getattr(nnx, name), 8, **({"num_groups": 2} if name == "GroupNorm" else {}), **arguments)
    spec = SPECS[name](**arguments)
    for ours, flax in zip(
        weights(lambda rngs: jn.nnx.Norm(spec, 8, rngs)), weights(lambda rngs: theirs(rngs=rngs)), strict=True
    ):
        np.testing.assert_array_equal(ours, flax)
    # And without keys it does without.
    np.testing.assert_allclose(jn.nnx.Norm(spec, 8)(X), jn.nnx.Norm(spec, 8, nnx.Rngs(0))(X))

"""Models that say flax's names get our norms, for a while."""

import importlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm as jn

X = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
NAMES = ["BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm"]


@pytest.mark.parametrize(("theirs", "ours"), [(nn, jn.linen), (nnx, jn.nnx)], ids=["linen", "nnx"])
def test_names_are_ours_within_and_theirs_after(theirs, ours):
    before = {name: getattr(theirs, name) for name in NAMES}

    def within():
        with ours.patched():
            with ours.patched():
                assert theirs.BatchNorm is ours.BatchNorm
            for name in NAMES:
                assert getattr(theirs, name) is getattr(ours, name)
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        within()
    assert {name: getattr(theirs, name) for name in NAMES} == before


class Public(nn.Module):
    """A model as public code has them."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x))
        return nn.GroupNorm(2)(nn.LayerNorm()(x))


def test_variables_keep_their_names_and_statistics_are_accurate():
    model = Public()
    theirs = model.init(jax.random.key(0), X, False)
    with jn.linen.patched():
        ours = model.init(jax.random.key(0), X, False)
        y, _ = model.apply(ours, X, True, mutable="batch_stats")
        far = {**ours, "params": {**ours["params"], "Conv_0": {**ours["params"]["Conv_0"], "bias": jnp.full(4, 1e4)}}}
        at_a_large_mean, _ = model.apply(far, X, True, mutable="batch_stats")
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    np.testing.assert_allclose(y, model.apply(theirs, X, True, mutable="batch_stats")[0], rtol=1e-4, atol=1e-4)
    # The convolution itself rounds to 1e-3 there.
    np.testing.assert_allclose(at_a_large_mean, y, atol=0.05)
    assert not np.allclose(model.apply(far, X, True, mutable="batch_stats")[0], y, atol=0.05)


def test_norms_in_the_attention_of_flax():
    attend = nn.MultiHeadDotProductAttention(2, normalize_qk=True)
    x = X.reshape(2, -1, 32)[:, :5]
    variables = attend.init(jax.random.key(0), x)
    found = []

    def watch(call, args, kwargs, context):
        found.append(type(context.module))
        return call(*args, **kwargs)

    with jn.linen.patched(), nn.intercept_methods(watch):
        y = attend.apply(variables, x)
    assert jn.linen.LayerNorm in found
    np.testing.assert_allclose(y, attend.apply(variables, x), rtol=1e-4, atol=1e-5)
    with jn.nnx.patched():
        attention = nnx.MultiHeadAttention(2, 32, normalize_qk=True, decode=False, rngs=nnx.Rngs(0))
    assert isinstance(attention.query_ln, jn.nnx.LayerNorm)


def norms_in(module):
    """The classes of batch norms that a call of a model makes."""
    found = set()

    def watch(call, args, kwargs, context):
        if "BatchNorm" in type(context.module).__name__:
            found.add(type(context.module))
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        variables = jax.eval_shape(lambda: module.init(jax.random.key(0), X))
    return found, variables


@pytest.mark.long
def test_a_resnet_from_a_package():
    """Its defaults are bound at import: so it is imported within."""
    import jax_resnet

    theirs, want = norms_in(jax_resnet.ResNet18(n_classes=10))
    assert theirs == {nn.BatchNorm}
    with jn.linen.patched():
        late, _ = norms_in(jax_resnet.ResNet18(n_classes=10))
        loaded = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "jax_resnet"}
        try:
            model = importlib.import_module("jax_resnet").ResNet18(n_classes=10)
        finally:
            for name in [name for name in sys.modules if name.split(".")[0] == "jax_resnet"]:
                del sys.modules[name]
            sys.modules.update(loaded)
    assert late == {nn.BatchNorm}
    ours, variables = norms_in(model)
    assert ours == {jn.linen.BatchNorm}
    assert jax.tree.structure(variables) == jax.tree.structure(want)
    variables = jax_resnet.ResNet18(n_classes=10).init(jax.random.key(0), X)
    run = lambda model: jax.jit(lambda variables, x: model.apply(variables, x, mutable="batch_stats"))(variables, X)
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3),
        run(model), run(jax_resnet.ResNet18(n_classes=10)),
    )  # fmt: skip

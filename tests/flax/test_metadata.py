"""Where variables lie on a mesh, in the words of linen and of nnx; and where running statistics begin."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm as jn

pytestmark = pytest.mark.long
X = jax.random.normal(jax.random.key(0), (8, 4)) + 3
KEY = jax.random.key(1)
ones, twos = nn.initializers.ones, nn.initializers.constant(2.0)
placed = lambda init: nn.with_logical_partitioning(init, ("embed",))


def test_statistics_begin_where_an_initializer_says():
    norm = jn.linen.Norm(jn.BatchNorm(), train=False, mean_init=ones, var_init=twos)
    variables = norm.init(KEY, X)
    layer = jn.nnx.Norm(jn.BatchNorm(), 4, nnx.Rngs(0), mean_init=nnx.initializers.ones, var_init=twos)
    layer.eval()
    for mean, var in (variables["batch_stats"].values(), (layer.mean[...], layer.var[...])):
        np.testing.assert_array_equal(mean, np.ones(4))
        np.testing.assert_array_equal(var, np.full(4, 2))
    want = (X - 1) / np.sqrt(2 + 1e-5)
    for y in (norm.apply(variables, X), layer(X)):
        np.testing.assert_allclose(y, want, rtol=1e-5)


def test_without_initializers_as_many_keys_are_drawn_as_before():
    rngs, others = nnx.Rngs(0), nnx.Rngs(0)
    jn.nnx.Norm(jn.BatchNorm(), 4, rngs)
    nnx.BatchNorm(4, rngs=others)
    np.testing.assert_array_equal(jax.random.key_data(rngs.params()), jax.random.key_data(others.params()))


MODULES = {
    "norm": lambda **kw: jn.linen.Norm(jn.BatchNorm(momentum=0.5), train=True, **kw),
    "statistics, too": lambda **kw: jn.linen.Norm(
        jn.BatchNorm(momentum=0.5), train=True, mean_init=placed(ones), var_init=placed(twos), **kw
    ),
    "layer": lambda **kw: jn.linen.Norm(jn.LayerNorm(), train=True, **kw),
    "drop-in": lambda **kw: jn.linen.BatchNorm(use_running_average=False, **kw),
    "drop-in layer": lambda **kw: jn.linen.LayerNorm(**kw),
}


@pytest.mark.parametrize("name", MODULES)
def test_boxes_of_linen(name):
    """They stay around parameters, and around statistics that are written; the numbers are those without them."""
    boxed, bare = MODULES[name](scale_init=placed(twos)), MODULES[name](scale_init=twos)
    variables = boxed.init(KEY, X)
    assert nn.get_partition_spec(variables)["params"]["scale"] == P("embed")
    y, new = boxed.apply(variables, X, mutable=["batch_stats"])
    stats = variables.get("batch_stats", {})
    assert jax.tree.structure(new.get("batch_stats", {})) == jax.tree.structure(stats)
    if name == "statistics, too":
        assert nn.get_partition_spec(new)["batch_stats"] == {"mean": P("embed"), "var": P("embed")}
    want, want_new = bare.apply(nn.meta.unbox(variables), X, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, want)
    jax.tree.map(np.testing.assert_array_equal, nn.meta.unbox(new), want_new)


def test_boxes_stay_while_statistics_are_taken_anew():
    norm = MODULES["statistics, too"](scale_init=placed(ones))
    variables = norm.init(KEY, X)
    exact = jn.linen.recalibrate(norm, variables, [X[:4], X[4:]])
    assert jax.tree.structure(exact) == jax.tree.structure(variables)
    np.testing.assert_allclose(exact["batch_stats"]["mean"].value, X.mean(0), rtol=1e-6)
    inspected = jn.linen.inspect(norm, exact, [X])[""]
    np.testing.assert_allclose(inspected.mean_distance, 0, atol=1e-5)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [jn.LayerNorm(), jn.RMSNorm(), jn.BatchNorm()], ids=lambda s: type(s).__name__)
def test_metadata_of_nnx(kind, spec):
    """A scale lies where Flax puts it, and y lies as x."""
    mesh = jax.make_mesh((4,), ("embed",), devices=jax.devices()[:4], axis_types=(kind,))
    with jax.set_mesh(mesh):
        x = jax.device_put(X, NamedSharding(mesh, P(None, "embed")))
        metadata = {"scale_metadata": {"out_sharding": ("embed",)}}
        layer = jn.nnx.Norm(spec, 4, nnx.Rngs(0), scale_init=twos, **metadata)
        theirs = nnx.LayerNorm(4, rngs=nnx.Rngs(0), **metadata)
        assert layer.scale[...].sharding == theirs.scale[...].sharding
        assert layer.scale[...].sharding.spec == P("embed")
        y = nnx.jit(lambda layer, x: layer(x))(layer, x)
        assert y.sharding.is_equivalent_to(x.sharding, 2)
    params, state = spec.init(4)
    want, _ = spec.apply(params._replace(scale=jnp.full(4, 2.0)), state, X, train=True)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)

"""Norms in Haiku: any spec, and its batch norm with all that models pass to it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import close

import jaxnorm as jn

hk = pytest.importorskip("haiku")

pytestmark = pytest.mark.long
X = jax.random.normal(jax.random.key(0), (4, 3, 5, 6)) + 1


def transformed(make, **fixed):
    return hk.transform_with_state(lambda x, **kw: make()(x, **fixed, **kw))


def test_a_norm_with_a_state():
    net = transformed(lambda: jn.haiku.Norm(jn.BatchNorm(momentum=0.5)))
    params, state = net.init(None, X, is_training=True)
    assert jax.tree.map(jnp.shape, params) == {"norm": {"scale": (6,), "bias": (6,)}}
    spec = jn.BatchNorm(momentum=0.5)
    own, want = spec.init(6)
    for train in (True, True, False):
        y, state = jax.jit(net.apply, static_argnames="train")(params, state, None, X, train=train)
        want_y, want = spec.apply(own, want, X, train=train)
        close(y, want_y, 1e-6)
        chex.assert_trees_all_close(state["norm"]["state"], want, rtol=1e-6)


def test_evaluation_by_the_batch_leaves_the_state_alone():
    net = transformed(lambda: jn.haiku.Norm(jn.BatchNorm()))
    params, state = net.init(None, X, is_training=True)
    y, same = net.apply(params, state, None, X, is_training=False, test_local_stats=True)
    close(y, jn.batch_norm(X, None, train=True)[0], 1e-6)
    chex.assert_trees_all_equal(same, state)


def test_statistics_of_a_model_are_found():
    def model(x, is_training):
        x = jn.haiku.Norm(jn.BatchNorm())(x, is_training)
        return jn.haiku.Norm(jn.BatchNorm())(hk.Linear(3)(x), is_training)

    net = hk.transform_with_state(model)
    params, state = net.init(jax.random.key(0), X, is_training=True)
    state = jn.recalibrate(lambda state, x: net.apply(params, state, None, x, False)[1], state, jnp.split(X, 2))
    close(state["norm"]["state"].mean, X.mean((0, 1, 2)), 1e-5)
    close(state["norm"]["state"].var, X.var((0, 1, 2)), 1e-5)
    # The second norm saw what the first gave by each batch.
    assert np.abs(state["norm_1"]["state"].var - 1).max() > 1e-3


@pytest.mark.parametrize("spec", [jn.LayerNorm(), jn.RMSNorm(), jn.FilterResponseNorm(), jn.DynamicTanh()], ids=str)
def test_a_norm_without_state(spec):
    net = transformed(lambda: jn.haiku.Norm(spec, name="of"), is_training=False)
    params, state = net.init(None, X)
    assert not state
    own, _ = spec.init(6)
    chex.assert_trees_all_equal(params["of"], {k: v for k, v in own._asdict().items() if v is not None})
    close(net.apply(params, state, None, X)[0], spec.apply(own, None, X, train=True)[0], 1e-6)


def test_initializers_and_conditional_scales():
    net = transformed(
        lambda: jn.haiku.Norm(jn.LayerNorm(), scale_init=jnp.zeros, bias_init=hk.initializers.Constant(2.0)), train=True
    )
    np.testing.assert_array_equal(net.apply(*net.init(None, X), None, X)[0], 2)
    scale = jnp.arange(1.0, 5).reshape(4, 1, 1, 1)
    net = transformed(lambda: jn.haiku.Norm(jn.LayerNorm(use_scale=False)), train=True, scale=scale)
    close(net.apply(*net.init(None, X), None, X)[0], scale * jn.layer_norm(X), 1e-6)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        ({"is_training": True, "train": True}, ValueError, "haiku.Norm: train=True and is_training=True say the same"),
        ({}, ValueError, "haiku.Norm: is_training is given nowhere"),
        ({"train": True, "scale": 2.0}, ValueError, "haiku.Norm: scale is given in the call"),
    ],
)
def test_errors(call, error, words):
    net = transformed(lambda: jn.haiku.Norm(jn.BatchNorm()))
    with pytest.raises(error, match=words):
        net.init(None, X, **call)


ARGUMENTS = {
    "defaults": ({}, {}),
    "no affine": ({"create_scale": False, "create_offset": False}, {}),
    "given affine": (
        {"create_scale": False, "create_offset": False},
        {"scale": jnp.full((4, 1, 1, 6), 2.0), "offset": jnp.arange(6.0).reshape(1, 1, 1, 6)},
    ),
    "initializers": ({"scale_init": hk.initializers.Constant(3.0), "offset_init": jnp.ones, "eps": 0.1}, {}),
    "channels first": ({"data_format": "NC..."}, {}),
    "some axes": ({"axis": [0, 1]}, {}),
    "local statistics": ({}, {"test_local_stats": True}),
}


def both(options):
    options = {"create_scale": True, "create_offset": True, "decay_rate": 0.9} | options
    return [transformed(lambda of=of: of(**options, name="batch_norm")) for of in (jn.haiku.BatchNorm, hk.BatchNorm)]


@pytest.mark.parametrize("name", ARGUMENTS)
@jax.numpy_dtype_promotion("standard")  # which Haiku's averages need
def test_as_haiku(name):
    """Parameters and state by name, shape and value, through training and evaluation; and gradients."""
    options, call = ARGUMENTS[name]
    ours, theirs = both(options)
    params, state = theirs.init(None, X, is_training=True, **call)
    own = ours.init(None, X, is_training=True, **call)
    chex.assert_trees_all_close(own, (params, state), rtol=1e-6, atol=1e-6)
    states = [state, state]
    for step, train in enumerate((True, True, True, False)):
        x = X + step
        y, states[0] = jax.jit(lambda s, x, t=train: ours.apply(params, s, None, x, is_training=t, **call))(
            states[0], x
        )
        want, states[1] = theirs.apply(params, states[1], None, x, is_training=train, **call)
        close(y, want, 2e-5)
        chex.assert_trees_all_close(*states, rtol=1e-4, atol=1e-5)
    loss = lambda net: lambda p: jnp.sin(net.apply(p, state, None, X, is_training=True, **call)[0]).sum()
    chex.assert_trees_all_close(jax.grad(loss(ours))(params), jax.grad(loss(theirs))(params), rtol=1e-4, atol=1e-4)


@jax.numpy_dtype_promotion("standard")
def test_devices_as_haiku():
    ours, theirs = both({"cross_replica_axis": "d"})
    each = lambda net, x: net.apply(*net.init(None, x, is_training=True), None, x, is_training=True)[0]
    run = lambda net: jax.vmap(lambda x: each(net, x), axis_name="d")(X)
    close(run(ours), run(theirs), 2e-5)


@jax.numpy_dtype_promotion("standard")
def test_where_haiku_is_wrong():
    """A mean of 1e4 leaves its variance at 0 or below; a bfloat16 average stands still; NaN stays for good."""
    ours, _ = both({})
    far = X + 1e4
    y, state = ours.apply(*ours.init(None, far, is_training=True), None, far, is_training=True)
    x = np.asarray(far, float)
    close(y, (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5), 1e-5)
    narrow = X.astype(jnp.bfloat16)
    params, state = ours.init(None, narrow, is_training=True)
    y, state = ours.apply(params, state, None, narrow, is_training=True)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} == {"float32", "int32"}
    params, state = ours.init(None, X, is_training=True)
    _, state = ours.apply(params, state, None, X, is_training=True)
    _, after = ours.apply(params, state, None, X.at[0, 0, 0, 2].set(jnp.nan), is_training=True)
    average = lambda state: state["batch_norm/~/mean_ema"]["average"]
    close(average(after), average(state), 1e-6)


def test_a_constant_that_haiku_rounded_to_below_zero():
    """Its own average of a variance is −1e-7 then, and stays so in a checkpoint."""
    ours, theirs = both({})
    params, state = theirs.init(None, X, is_training=True)
    state["batch_norm/~/var_ema"] |= {"average": jnp.full((1, 1, 1, 6), -1e-7)}
    y, want = (net.apply(params, state, None, X, is_training=False)[0] for net in (ours, theirs))
    np.testing.assert_allclose(y, want, rtol=2e-2)
    state["batch_norm/~/var_ema"] |= {"average": jnp.full((1, 1, 1, 6), -1.0)}
    assert jnp.isnan(ours.apply(params, state, None, X, is_training=False)[0]).all()


@jax.numpy_dtype_promotion("standard")
def test_narrow_averages_are_not_trained():
    ours, _ = both({})
    params, state = ours.init(None, X, is_training=True)
    narrow = jax.tree.map(lambda v: v.astype(jnp.bfloat16) if v.ndim else v, state)
    with pytest.raises(TypeError, match="an average stands still"):
        ours.apply(params, narrow, None, X, is_training=True)
    assert jnp.isfinite(ours.apply(params, narrow, None, X, is_training=False)[0]).all()


@pytest.mark.parametrize("shape", [(5,), (5, 1), (4, 1, 1)])
@jax.numpy_dtype_promotion("standard")
@jax.numpy_rank_promotion("allow")
def test_given_scales_broadcast_as_in_haiku(shape):
    x = X[:, 0, :5, :5]
    ours, theirs = both({"create_scale": False, "create_offset": False, "data_format": "channels_first"})
    call = {"is_training": True, "scale": jnp.arange(1.0, 1 + np.prod(shape)).reshape(shape)}
    params, state = theirs.init(None, x, **call)
    close(ours.apply(params, state, None, x, **call)[0], theirs.apply(params, state, None, x, **call)[0], 2e-5)


def test_local_statistics_alone_need_no_averages():
    ours, theirs = both({})
    for net in (ours, theirs):
        params, state = net.init(None, X, is_training=False, test_local_stats=True)
        assert not state
        y, _ = net.apply(params, state, None, X, is_training=False, test_local_stats=True)
        close(y, jn.batch_norm(X, None, train=True)[0], 2e-5)
        with pytest.raises(ValueError, match="No value for 'average'"):
            net.init(None, X, is_training=False)


@pytest.mark.long
@jax.numpy_dtype_promotion("standard")  # which its code needs
def test_a_resnet_of_haiku(monkeypatch):
    """Its own code, with our class in the place of its own: one checkpoint for both."""
    from haiku._src.nets import resnet

    images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
    model = lambda x, is_training, **kw: hk.nets.ResNet18(7)(x, is_training, **kw)
    theirs = hk.transform_with_state(model)
    params, state = theirs.init(jax.random.key(0), images, is_training=True)
    run = jax.jit(theirs.apply, static_argnames=("is_training", "test_local_stats"))
    want, want_state = run(params, state, None, images, is_training=True)
    evaluated, _ = run(params, want_state, None, images, is_training=False)
    local, _ = run(params, want_state, None, images, is_training=False, test_local_stats=True)
    monkeypatch.setattr(resnet.hk, "BatchNorm", jn.haiku.BatchNorm)
    ours = hk.transform_with_state(lambda *args, **kw: model(*args, **kw))
    run = jax.jit(ours.apply, static_argnames=("is_training", "test_local_stats"))
    got, got_state = run(params, state, None, images, is_training=True)
    close(got, want, 1e-3)
    chex.assert_trees_all_close(got_state, want_state, rtol=1e-3, atol=1e-4)
    close(run(params, want_state, None, images, is_training=False)[0], evaluated, 1e-3)
    close(run(params, want_state, None, images, is_training=False, test_local_stats=True)[0], local, 1e-3)

"""Norms in Equinox: any spec, in a model that is mapped over examples, trained, and flipped to inference."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from references import close

import jaxnorm as jn

eqx = pytest.importorskip("equinox")

pytestmark = pytest.mark.long
X = jax.random.normal(jax.random.key(0), (8, 3, 6, 5)) + 1


def made(spec, features, **options):
    return eqx.nn.make_with_state(jn.equinox.Norm)(spec, features, **options)


def test_a_norm_with_a_state():
    spec = jn.BatchNorm(momentum=0.5, channel_axis=1)
    norm, state = made(spec, 3)
    params, want = spec.init(3)
    for inference in (None, False, True):
        y, state = eqx.filter_jit(norm)(X, state, inference=inference)
        want_y, want = spec.apply(params, want, X, train=not inference)
        close(y, want_y, 1e-6)
        chex.assert_trees_all_close(state.get(norm.state_index), want, rtol=1e-6)


def test_the_flag_flips_with_the_model():
    norm, state = made(jn.BatchNorm(channel_axis=1), 3)
    model = {"a": norm, "b": [norm]}
    flipped = eqx.nn.inference_mode(model)
    assert (flipped["a"].inference, flipped["b"][0].inference) == (True, True)
    assert not eqx.nn.inference_mode(flipped, value=False)["a"].inference
    y, same = flipped["a"](X, state)
    close(y, X / np.sqrt(1 + 1e-5), 1e-6)
    assert same is state


@pytest.mark.parametrize("spec", [jn.LayerNorm(), jn.RMSNorm(), jn.UnitNorm(), jn.DynamicTanh()], ids=str)
def test_a_norm_without_state(spec):
    norm, state = made(spec, 5)
    want, _ = spec.apply(spec.init(5)[0], None, X, train=True)
    close(norm(X), want, 1e-6)
    y, same = norm(X, state)
    close(y, want, 1e-6)
    assert same is state
    assert not norm.is_stateful()


class CNN(eqx.Module):
    """As Equinox's guide to stateful operations has it: examples under vmap, statistics over the name of the batch."""

    layers: eqx.nn.Sequential
    head: eqx.nn.Linear

    def __init__(self, norm, key):
        first, second, third = jax.random.split(key, 3)
        relu = eqx.nn.Lambda(jax.nn.relu)
        self.layers = eqx.nn.Sequential([
            eqx.nn.Conv2d(3, 8, 3, key=first), norm(8), relu, eqx.nn.Conv2d(8, 4, 3, key=second), norm(4), relu,
        ])  # fmt: skip
        self.head = eqx.nn.Linear(4, 2, key=third)

    def __call__(self, x, state):
        x, state = self.layers(x, state)
        return self.head(x.mean((1, 2))), state


def test_a_model_that_is_mapped_and_trained():
    """Beside Equinox's own batch norm, mode "ema", which differs in its first step alone: y in training is equal."""
    ours = lambda n: jn.equinox.Norm(jn.BatchNorm(channel_axis=0, axis_name="batch"), n)
    theirs = lambda n: eqx.nn.BatchNorm(n, "batch", mode="batch")
    runs = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for name, norm in (("ours", ours), ("theirs", theirs)):
            model, state = eqx.nn.make_with_state(CNN)(norm, jax.random.key(1))
            optimizer = optax.sgd(0.1)
            moments = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
            mapped = lambda model, x, state: jax.vmap(
                model, axis_name="batch", in_axes=(0, None), out_axes=(0, None)
            )(x, state)  # fmt: skip

            @eqx.filter_value_and_grad(has_aux=True)
            def loss(model, state, x, mapped=mapped):
                y, state = mapped(model, x, state)
                return ((y - jnp.array([[1.0, -1.0]])) ** 2).mean(), state

            @eqx.filter_jit
            def step(model, state, moments, x, loss=loss, optimizer=optimizer):
                (value, state), grads = loss(model, state, x)
                updates, moments = optimizer.update(grads, moments)
                return eqx.apply_updates(model, updates), state, moments, value

            losses = []
            for _ in range(6):
                model, state, moments, value = step(model, state, moments, X)
                losses.append(float(value))
            y, _ = eqx.filter_jit(mapped)(eqx.nn.inference_mode(model), X, state)
            runs[name] = losses, y, model
    np.testing.assert_allclose(runs["ours"][0], runs["theirs"][0], rtol=1e-3)
    assert runs["ours"][0][-1] < 0.5 * runs["ours"][0][0]
    assert jnp.isfinite(runs["ours"][1]).all()


def test_gradients_reach_parameters_and_not_numbers_of_the_spec():
    norm, state = made(jn.BatchNorm(channel_axis=1), 3)
    grads = eqx.filter_grad(lambda norm: (norm(X, state)[0] ** 3).sum())(norm)
    assert np.abs(grads.params.scale).min() > 0
    assert grads.spec.epsilon is None


def test_serialization(tmp_path):
    norm, state = made(jn.BatchNorm(channel_axis=1), 3)
    _, state = norm(X, state)
    eqx.tree_serialise_leaves(tmp_path / "norm", (norm, state))
    fresh = made(jn.BatchNorm(channel_axis=1), 3)
    norm, again = eqx.tree_deserialise_leaves(tmp_path / "norm", fresh)
    chex.assert_trees_all_equal(again.get(norm.state_index).mean, jn.batch_norm(
        X, jn.BatchNorm().init(3)[1], train=True, channel_axis=1
    )[1].mean)  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda norm, state: norm(X), ValueError, "equinox.Norm: BatchNorm has a state: give it"),
        (lambda norm, state: norm(X, state, scale=2.0), ValueError, "equinox.Norm: scale is given in the call"),
        (lambda norm, state: jn.equinox.Norm(jn.BatchNorm, 3), TypeError, "write BatchNorm()"),
    ],
)
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        call(*made(jn.BatchNorm(channel_axis=1), 3))

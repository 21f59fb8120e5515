"""Networks trained for some steps with our norms and with Flax's, from the same variables: the same losses.

With an offset of 1e4 in their input, ours are those without it, and Flax's are not.
"""

from functools import partial

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxnorm as jn
from benchmarks.networks import LinenResNet18, LinenTransformer, NNXResNet18, NNXTransformer

pytestmark = pytest.mark.once

STEPS = 6
KEYS = jax.random.split(jax.random.key(0), 3)


def exact(x):
    """Multiples of 2⁻⁸, to which 1e4 can be added without rounding."""
    return jnp.round(x * 256) / 256


IMAGES = exact(jax.random.normal(KEYS[0], (STEPS, 32, 32, 32, 3)))
LABELS = jax.random.randint(KEYS[1], (STEPS, 32), 0, 10)
TOKENS = exact(jax.random.normal(KEYS[0], (STEPS, 8, 16, 64)))
TARGETS = jax.random.normal(KEYS[2], (STEPS, 8, 16, 64))


def cross_entropy(y, labels):
    return optax.softmax_cross_entropy_with_integer_labels(y, labels).mean()


def distance(y, targets):
    """Between targets and what a norm would see of the residual stream: that carries the offset along."""
    return ((y - y.mean(-1, keepdims=True) - targets) ** 2).mean()


def linen_resnet(norm):
    return LinenResNet18(partial(norm.BatchNorm, use_running_average=False, momentum=0.9), width=16)


def nnx_resnet(norm):
    return NNXResNet18(partial(norm.BatchNorm, momentum=0.9), width=16, rngs=nnx.Rngs(0))


def linen_transformer(norm):
    # flax.linen takes statistics before it rounds to bfloat16, flax.nnx after it.
    return LinenTransformer(*(partial(n, dtype=jnp.bfloat16) for n in (norm.LayerNorm, norm.RMSNorm)))


def nnx_transformer(norm):
    return NNXTransformer(norm.LayerNorm, partial(norm.RMSNorm, dtype=jnp.bfloat16), 64, rngs=nnx.Rngs(0))


def in_linen(network, loss_of, optimizer):
    """Initial variables to what a step carries, and a step."""

    @jax.jit
    def step(carry, x, target):
        variables, state = carry

        def loss(params):
            y, updates = network.apply(variables | {"params": params}, x, mutable=["batch_stats"])
            return loss_of(y, target), updates

        (value, updates), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        change, state = optimizer.update(grads, state)
        return (variables | updates | {"params": optax.apply_updates(variables["params"], change)}, state), value

    return lambda variables: (variables, optimizer.init(variables["params"])), step


def in_nnx(network, loss_of, optimizer):
    """The same."""

    def start(state):
        model = nnx.clone(network)
        nnx.update(model, state)
        return model, nnx.Optimizer(model, optimizer, wrt=nnx.Param)

    @nnx.jit
    def step(carry, x, target):
        model, optimizer = carry
        value, grads = nnx.value_and_grad(lambda model: loss_of(model(x), target))(model)
        optimizer.update(model, grads)
        return value

    return start, lambda carry, *batch: (carry, step(carry, *batch))


def init_linen(network, x):
    return network.init(KEYS[0], x)


def init_nnx(network, x):
    return nnx.state(network)


# The last number: how far two runs that round differently drift apart. In bfloat16, that is 2e-4 in these steps.
LINEN, NNX = (in_linen, init_linen, jn.linen, flax.linen), (in_nnx, init_nnx, jn.nnx, flax.nnx)
IN_RESNET, IN_TRANSFORMER = (cross_entropy, IMAGES, LABELS, 0.001, 1e-4), (distance, TOKENS, TARGETS, 0.02, 5e-4)
CASES = {
    "linen ResNet-18": (linen_resnet, *LINEN, *IN_RESNET),
    "nnx ResNet-18": (nnx_resnet, *NNX, *IN_RESNET),
    "linen Transformer": (linen_transformer, *LINEN, *IN_TRANSFORMER),
    "nnx Transformer": (nnx_transformer, *NNX, *IN_TRANSFORMER),
}


@pytest.mark.parametrize(
    ("make", "library", "init", "ours", "theirs", "loss_of", "xs", "targets", "rate", "apart"),
    [pytest.param(*case, marks=pytest.mark.long if "ResNet" in name else ()) for name, case in CASES.items()],
    ids=CASES,
)
def test_training(make, library, init, ours, theirs, loss_of, xs, targets, rate, apart):
    losses = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        variables = init(make(theirs), xs[0])
        for norm in (ours, theirs):
            start, step = library(make(norm), loss_of, optax.sgd(rate))
            for offset in (0, 1e4):
                carry, found = start(variables), []
                for x, target in zip(xs + offset, targets, strict=True):
                    carry, loss = step(carry, x, target)
                    found.append(float(loss))
                losses[norm, offset] = np.array(found)
    assert len(set(losses[ours, 0])) == STEPS
    np.testing.assert_allclose(losses[ours, 0], losses[theirs, 0], rtol=apart)
    np.testing.assert_allclose(losses[ours, 1e4], losses[ours, 0], rtol=1e-3)
    assert not np.allclose(losses[theirs, 1e4], losses[theirs, 0], rtol=1e-2)


@pytest.fixture(scope="module")
def digits():
    """Images of 8 by 8, to train on and to evaluate."""
    from sklearn.datasets import load_digits

    x, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, labels = jnp.asarray(x[order], jnp.float32), jnp.asarray(labels[order], jnp.int32)
    return x[:1536].reshape(12, 128, 64), labels[:1536].reshape(12, 128), x[1536:], labels[1536:]


@pytest.fixture(scope="module")
def after_twelve_steps(digits):
    """Accuracy in evaluation of a small network after 12 steps, by the way its running statistics are kept."""
    xs, labels, x_test, y_test = digits

    def accuracy(spec, recalibrated=False):
        class Net(flax.linen.Module):
            @flax.linen.compact
            def __call__(self, x, train):
                for _ in range(2):
                    x = flax.linen.relu(jn.linen.Norm(spec)(flax.linen.Dense(64)(x), train=train))
                return flax.linen.Dense(10)(x)

        model, optimizer = Net(), optax.adam(1e-2)
        variables = model.init(jax.random.key(0), xs[0], train=True)

        def step(carry, batch):
            params, stats, opt = carry

            def loss(params):
                y, new = model.apply(
                    {"params": params, "batch_stats": stats}, batch[0], train=True, mutable=["batch_stats"]
                )
                return cross_entropy(y, batch[1]), new["batch_stats"]

            grads, stats = jax.grad(loss, has_aux=True)(params)
            updates, opt = optimizer.update(grads, opt)
            return (optax.apply_updates(params, updates), stats, opt), None

        start = variables["params"], variables["batch_stats"], optimizer.init(variables["params"])
        with jax.numpy_dtype_promotion("standard"):
            params, stats, _ = jax.jit(lambda carry: jax.lax.scan(step, carry, (xs, labels))[0])(start)
        trained = {"params": params, "batch_stats": stats}
        trained = jn.linen.recalibrate(model, trained, xs) if recalibrated else trained
        return float((model.apply(trained, x_test, train=False).argmax(-1) == y_test).mean())

    return {
        "plain": accuracy(jn.BatchNorm()),
        "recalibrated": accuracy(jn.BatchNorm(), recalibrated=True),
        "debias": accuracy(jn.BatchNorm(debias=True)),
        "cumulative": accuracy(jn.BatchNorm(momentum=None)),
    }


@pytest.mark.parametrize("way", ["debias", "cumulative"])
def test_evaluation_is_right_from_the_first_steps_on(after_twelve_steps, way):
    """Of the initial state 0.99¹² = 89 % is left without; with it, averages are as good as population statistics."""
    found = after_twelve_steps
    assert found["plain"] < found["recalibrated"] - 0.05
    assert found[way] > found["recalibrated"] - 0.03

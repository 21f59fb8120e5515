"""Norms in evaluation as ONNX, by the converter that people use: the same numbers, at any batch size.

`make onnx` runs this, in an environment of its own: what jax2onnx replaces in JAX stays in JAX's caches.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jaxnorm as jn
from benchmarks.networks import LinenResNet18, NNXResNet18

jax2onnx = pytest.importorskip("jax2onnx")
onnxruntime = pytest.importorskip("onnxruntime")

KEYS = jax.random.split(jax.random.key(0), 6)
SCALE, BIAS = jax.random.normal(KEYS[0], (4,)), jax.random.normal(KEYS[1], (4,))
STATE = jn.RunningStats(jax.random.normal(KEYS[2], (4,)), jax.random.uniform(KEYS[3], (4,)) + 0.5)
MASK = jax.random.bernoulli(KEYS[4], 0.7, (8, 8, 1))


class Net(nn.Module):
    norm: nn.Module

    @nn.compact
    def __call__(self, x):
        return nn.relu(self.norm(nn.Conv(4, (3, 3))(x)))


class Nnx(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.norms = nnx.List([jn.nnx.BatchNorm(4, rngs=rngs), jn.nnx.LayerNorm(4, rngs=rngs)])
        self.eval()

    def __call__(self, x):
        return self.norms[1](nnx.relu(self.norms[0](self.conv(x))))


def of_linen(norm):
    model = Net(norm)
    variables = model.init(jax.random.key(1), jnp.ones((1, 8, 8, 4)))
    return lambda x: model.apply(variables, x)


@pytest.fixture(autouse=True)
def _as_the_converter_wants_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


CASES = {
    "batch": lambda x: jn.batch_norm(x, STATE, SCALE, BIAS, train=False)[0],
    "instance": lambda x: jn.instance_norm(x, SCALE, BIAS),
    "layer": lambda x: jn.layer_norm(x, SCALE, BIAS),
    "layer, several axes": lambda x: jn.layer_norm(x, axis=(1, 2, 3)),
    "rms": lambda x: jn.rms_norm(x, SCALE, scale_offset=1.0),
    "group": lambda x: jn.group_norm(x, SCALE, BIAS, groups=2),
    "masked": lambda x: jn.layer_norm(x, SCALE, where=x > -10),
    "residual": lambda x: jn.add_layer_norm(x, 2 * x, SCALE)[0],
    "linen, spec": of_linen(jn.linen.Norm(jn.BatchNorm(), train=False)),
    "linen, drop-in": of_linen(jn.linen.BatchNorm(use_running_average=True)),
    "nnx": Nnx(),
}


def close(f, shape, *batches):
    """The converted function in onnxruntime, beside JAX."""
    model = jax2onnx.to_onnx(jn.portable(f), [shape])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for x in batches:
        (y,) = session.run(None, {session.get_inputs()[0].name: np.asarray(x)})
        want = np.asarray(f(x))
        assert y.shape == want.shape
        np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5 * abs(want).max())
    return [node.op_type for node in model.graph.node]


def data(batch):
    return jax.random.normal(KEYS[5], (batch, 8, 8, 4)) * 2 + 1


@pytest.mark.parametrize("name", CASES)
def test_known_sizes(name):
    close(CASES[name], (2, 8, 8, 4), data(2), data(2) + 1000)


@pytest.mark.parametrize("name", CASES)
def test_any_batch(name):
    close(CASES[name], ("B", 8, 8, 4), data(1), data(5))


def test_a_folded_norm_is_gone():
    model = Net(jn.linen.Norm(jn.BatchNorm(), train=False))
    variables = model.init(jax.random.key(1), data(1))
    apply, folded, _ = jn.linen.fold(model, variables, data(1))
    nodes = close(lambda x: apply(folded, x), ("B", 8, 8, 4), data(3))
    assert sorted(nodes) == ["Conv", "Relu", "Transpose", "Transpose"]


def test_whole_networks():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    model = LinenResNet18(lambda: jn.linen.Norm(jn.BatchNorm(), train=False), width=4)
    variables = model.init(jax.random.key(1), x)
    close(lambda x: model.apply(variables, x), ("B", 8, 8, 3), x)
    net = NNXResNet18(jn.nnx.BatchNorm, width=4, rngs=nnx.Rngs(0))
    net.eval()
    close(net, ("B", 8, 8, 3), x)

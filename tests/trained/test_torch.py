"""Norms of PyTorch: what it recorded of them (tests/recorded/torch_norms.py), evaluated and trained on here."""

import json
import pathlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from models import says

import jaxnorm as jn

RECORDED = np.load(pathlib.Path(__file__).parents[1] / "recorded" / "torch_norms.npz")
NAMES = sorted({key.split("/")[0] for key in RECORDED})
each = pytest.mark.parametrize("name", NAMES)


def recorded(name):
    """What is recorded of a module; its state_dicts before and after, and all else."""
    every = {key.removeprefix(f"{name}/"): RECORDED[key] for key in RECORDED if key.startswith(f"{name}/")}
    dicts = [
        {k.removeprefix(f"{when}/"): v for k, v in every.items() if k.startswith(f"{when}/")}
        for when in ("before", "after")
    ]
    return (
        json.loads(str(every["arguments"])),
        *dicts,
        SimpleNamespace(**{k: v for k, v in every.items() if "/" not in k}),
    )


def module(name):
    """Something with the attributes of a module of PyTorch."""
    arguments, before, *_ = recorded(name)
    cls = type(name.split()[0], (), {"state_dict": lambda self: before})
    made = cls()
    defaults = jn.torch._ARGUMENTS[cls.__name__]
    vars(made).update({k: v for k, v in (defaults | arguments).items() if k != "bias"})
    return made


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


@each
def test_evaluation_and_training_that_goes_on(name):
    _, _, after, found = recorded(name)
    spec, params, state = jn.torch.from_module(module(name))
    # Without running statistics, PyTorch takes those of the batch in evaluation, too.
    train = name == "BatchNorm2d untracked"
    close(spec.apply(params, state, found.x0, train=train)[0], found.evaluated)

    def loss(params, state, x):
        y, state = spec.apply(params, state, x, train=True)
        return (y**3).mean(), (y, state)

    for x, want in ((found.x0, found.y0), (found.x1, found.y1)):
        (_, (y, state)), grads = jax.value_and_grad(loss, has_aux=True)(params, state, x)
        close(y, want)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    want_params, want_state = jn.torch.from_module(module_of(name, after))[1:]
    jax.tree.map(close, params, want_params)
    jax.tree.map(close, state, want_state)


def module_of(name, arrays):
    made = module(name)
    type(made).state_dict = lambda self: arrays
    return made


@each
def test_there_and_back_bit_for_bit(name):
    _, before, *_ = recorded(name)
    arrays = jn.torch.to_state_dict(*jn.torch.from_module(module(name)), prefix="a.b.")
    want = {f"a.b.{key}": value for key, value in before.items()}
    if "cumulative" not in name:
        want = {k: v for k, v in want.items() if "num_batches" not in k}
        arrays = {k: v for k, v in arrays.items() if "num_batches" not in k}
    assert arrays.keys() == want.keys()
    for key, value in arrays.items():
        assert value.dtype == want[key].dtype
        np.testing.assert_array_equal(value, want[key])


def test_conventions_travel():
    spec = jn.torch.spec("BatchNorm2d", momentum=0.1, eps=1e-3)
    assert spec == jn.BatchNorm(momentum=0.9, ddof=1, epsilon=1e-3, channel_axis=1)
    assert jn.torch.spec("BatchNorm2d", channel_axis=-1).channel_axis == -1
    assert jn.torch.spec("BatchNorm2d", momentum=None).momentum is None
    assert jn.torch.spec("LayerNorm", normalized_shape=(3, 4)).axis == (-2, -1)
    assert jn.torch.spec("LayerNorm", normalized_shape=4, bias=False) == jn.LayerNorm(axis=(-1,), use_bias=False)
    assert jn.torch.spec("RMSNorm").epsilon == np.finfo(np.float32).eps
    assert jn.torch.spec("GroupNorm", num_groups=2, num_channels=4) == jn.GroupNorm(groups=2, channel_axis=1)
    assert not jn.torch.spec("InstanceNorm2d").use_scale


def test_files_of_safetensors_and_tensors(tmp_path):
    _, before, *_ = recorded("BatchNorm2d")
    prefixed = {f"layer1.bn.{key}": value for key, value in before.items()}
    safetensors.numpy.save_file(prefixed, tmp_path / "model.safetensors")
    spec = jn.torch.spec("BatchNorm2d")
    want = jn.torch.from_state_dict(spec, before)
    got = jn.torch.from_state_dict(spec, safetensors.numpy.load_file(tmp_path / "model.safetensors"), "layer1.bn.")
    jax.tree.map(np.testing.assert_array_equal, got, want)

    class Tensor:
        """A tensor, as far as it is asked."""

        def __init__(self, value, dtype="torch.float32"):
            self.value, self.dtype = value, dtype

        def detach(self):
            return self

        cpu = detach

        def float(self):
            return Tensor(np.float32(self.value))

        def numpy(self):
            if self.dtype == "torch.bfloat16":
                raise TypeError("Got unsupported ScalarType BFloat16")
            return self.value

    got = jn.torch.from_state_dict(spec, {key: Tensor(value) for key, value in before.items()})
    jax.tree.map(np.testing.assert_array_equal, got, want)
    narrow = {"weight": Tensor(jnp.array([1.5, 2.0], "bfloat16"), "torch.bfloat16")}
    params, _ = jn.torch.from_state_dict(jn.RMSNorm(), narrow)
    assert params.scale.dtype == jnp.bfloat16


def test_variables_of_linen_and_nnx():
    *_, found = recorded("BatchNorm2d")
    spec, params, state = jn.torch.from_module(module("BatchNorm2d"))
    kept = {"mean": state.mean, "var": state.var}
    variables = {"params": params._asdict(), "batch_stats": kept}
    close(jn.linen.Norm(spec).apply(variables, found.x0, train=False), found.evaluated)
    norm = jn.nnx.Norm(spec, 4)
    for name, value in (params._asdict() | kept).items():
        getattr(norm, name).set_value(value)
    norm.eval()
    close(norm(found.x0), found.evaluated)


GOOD = {"weight": jnp.ones(3), "bias": jnp.ones(3), "running_mean": jnp.ones(3), "running_var": jnp.ones(3)}
BATCH = jn.BatchNorm()
MISTAKES = {
    "missing: bias, running_var": lambda: jn.torch.from_state_dict(
        BATCH, {k: GOOD[k] for k in ("weight", "running_mean")}
    ),
    "a.: arrays do not fit. missing: .*weight": lambda: jn.torch.from_state_dict(BATCH, GOOD, "a."),
    "unexpected: gamma": lambda: jn.torch.from_state_dict(BATCH, GOOD | {"gamma": jnp.ones(3)}),
    r"running_var has shape \(1, 3\), not \(3,\)": lambda: jn.torch.from_state_dict(
        BATCH, GOOD | {"running_var": jnp.ones((1, 3))}
    ),
    "unexpected: running_mean, running_var": lambda: jn.torch.from_state_dict(jn.LayerNorm(), GOOD),
    "no norm 'BatchNorm4d'. Did you mean": lambda: jn.torch.spec("BatchNorm4d"),
    "BatchNorm1d has no argument 'epsilon'": lambda: jn.torch.spec("BatchNorm1d", epsilon=1e-3),
    "lacks its argument num_groups": lambda: jn.torch.spec("GroupNorm"),
    "no norm 'Linear'": lambda: jn.torch.from_module(type("Linear", (), {})()),
    "BatchInstanceNorm has gate": lambda: jn.torch.to_state_dict(
        jn.BatchInstanceNorm(), *jn.BatchInstanceNorm().init(2)
    ),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes(message):
    says(MISTAKES[message], "torch", message)

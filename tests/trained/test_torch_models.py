"""A network of PyTorch in linen and nnx: what it recorded (tests/recorded/torch_model.py), and trained on here."""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from models import says

import jaxnorm as jn

RECORDED = np.load(pathlib.Path(__file__).parents[1] / "recorded" / "torch_model.npz")
BEFORE, AFTER = (
    {key.removeprefix(f"{when}/"): RECORDED[key] for key in RECORDED if key.startswith(f"{when}/")}
    for when in ("before", "after")
)
X = RECORDED["x"].transpose(0, 2, 3, 1)
BATCH, LAYER = jn.torch.spec("BatchNorm2d", channel_axis=-1), jn.torch.spec("LayerNorm")
RULES = [
    (r"^layers\.(\d)\.conv(\d)$", r"Block_\1/conv\2"),
    (r"^layers\.(\d)\.bn(\d)$", r"Block_\1/bn\2"),
]


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, train):
        conv = lambda name, groups: nn.Conv(
            self.features, (3, 3), use_bias=False, feature_group_count=groups, name=name
        )
        x = nn.relu(jn.linen.Norm(BATCH, name="bn1")(conv("conv1", 1)(x), train=train))
        return nn.relu(jn.linen.Norm(BATCH, name="bn2")(conv("conv2", 2)(x), train=train))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = Block(4)(x, train)
        x = Block(8)(x, train).mean((1, 2))
        return nn.Dense(5, name="fc")(jn.linen.Norm(LAYER, name="ln")(x, train=train))


class NNXBlock(nnx.Module):
    def __init__(self, inputs, features, rngs):
        self.conv1 = nnx.Conv(inputs, features, (3, 3), use_bias=False, rngs=rngs)
        self.conv2 = nnx.Conv(features, features, (3, 3), use_bias=False, feature_group_count=2, rngs=rngs)
        self.bn1, self.bn2 = (jn.nnx.Norm(BATCH, features) for _ in range(2))

    def __call__(self, x):
        return nnx.relu(self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(x))))))


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([NNXBlock(3, 4, rngs), NNXBlock(4, 8, rngs)])
        self.ln, self.fc = jn.nnx.Norm(LAYER, 8), nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x):
        return self.fc(self.ln(self.layers[1](self.layers[0](x)).mean((1, 2))))


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def of_linen():
    return Net().init(jax.random.key(0), X, False)


def test_linen_evaluates_and_trains_on_as_pytorch_does():
    model, variables = Net(), jn.torch.load_variables(of_linen(), BEFORE, RULES)
    close(model.apply(variables, X, False), RECORDED["evaluated"])
    params, stats = variables["params"], variables["batch_stats"]
    optimizer = optax.sgd(0.1)
    momentum = optimizer.init(params)

    @jax.jit
    def step(params, stats, momentum):
        def loss(params):
            y, new = model.apply({"params": params, "batch_stats": stats}, X, True, mutable="batch_stats")
            return (y**2).mean(), new["batch_stats"]

        grads, new = jax.grad(loss, has_aux=True)(params)
        updates, momentum = optimizer.update(grads, momentum)
        return optax.apply_updates(params, updates), new, momentum

    for _ in range(3):
        params, stats, momentum = step(params, stats, momentum)
    trained = {"params": params, "batch_stats": stats}
    close(model.apply(trained, X, False), RECORDED["trained"])
    jax.tree.map(close, trained, jn.torch.load_variables(of_linen(), AFTER, RULES))


def test_nnx_evaluates_as_pytorch_does():
    """Its names are those of PyTorch: there are no rules."""
    model = NNXNet(nnx.Rngs(0))
    state = nnx.state(model)
    nnx.replace_by_pure_dict(state, jn.torch.load_variables(nnx.to_pure_dict(state), BEFORE))
    nnx.update(model, state)
    model.eval()
    close(model(X), RECORDED["evaluated"])


@pytest.mark.parametrize("of", ["linen", "nnx"])
def test_there_and_back_bit_for_bit(of):
    variables, rules = (of_linen(), RULES) if of == "linen" else (nnx.to_pure_dict(nnx.state(NNXNet(nnx.Rngs(0)))), ())
    loaded = jn.torch.load_variables(variables, BEFORE, rules)
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    dumped = jn.torch.dump_variables(loaded, AFTER, rules)
    assert dumped.keys() == BEFORE.keys()
    for key, value in dumped.items():
        want = AFTER[key] if key.endswith("num_batches_tracked") else BEFORE[key]
        assert value.dtype == want.dtype
        np.testing.assert_array_equal(value, want)


def test_embeddings_counts_and_other_collections():
    variables = {
        "params": {"embed": {"embedding": jnp.zeros((5, 2))}},
        "batch_stats": {"bn": {"mean": jnp.zeros(2), "var": jnp.ones(2), "weight_sum": jnp.zeros(2)}},
        "cache": {"index": jnp.array(3)},
    }
    arrays = {"embed.weight": np.ones((5, 2)), "bn.running_mean": np.ones(2), "bn.running_var": np.ones(2)}
    loaded = jn.torch.load_variables(variables, arrays)
    assert loaded["cache"] == variables["cache"]
    np.testing.assert_array_equal(loaded["params"]["embed"]["embedding"], 1)
    np.testing.assert_array_equal(loaded["batch_stats"]["bn"]["mean"], 1)


def test_all_that_does_not_match_is_in_one_error():
    arrays = {key: value for key, value in BEFORE.items() if key != "fc.bias"}
    arrays |= {"head.weight": np.ones(3), "fc.weight": np.ones((8, 5)), "attn.in_proj_weight": np.ones(2)}
    says(
        lambda: jn.torch.load_variables(of_linen(), arrays, RULES),
        "missing: params/fc/bias", "unexpected: attn.in_proj_weight, head.weight",
        r"params/fc/kernel has shape \(5, 8\), not \(8, 5\)",
    )  # fmt: skip
    says(
        lambda: jn.torch.load_variables(of_linen(), BEFORE), "missing: .*params/Block_0/conv1/kernel", "layers.0.conv1"
    )
    says(
        lambda: jn.torch.load_variables(of_linen(), BEFORE, [(r"^layers\.\d\.(\w+)$", r"Block_0/\1")]),
        "meet in .*params/Block_0/conv1/kernel", "rules",
    )  # fmt: skip

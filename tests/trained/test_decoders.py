"""Small decoders with the norms of Gemma 3 and of Qwen 3: their weights give the logits of transformers."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from references import recorded, under

import jaxnorm as jn

pytestmark = pytest.mark.long
SIZES = json.loads(str(recorded("torch_decoders")["sizes"]))
WIDTH, HEADS, HEAD = SIZES["hidden_size"], SIZES["num_attention_heads"], SIZES["head_dim"]
GEMMA = {"norm": jn.RMSNorm(scale_offset=1.0, epsilon=1e-6), "sandwich": True, "gate": nn.gelu, "theta": 1e6}
QWEN = {"norm": jn.RMSNorm(epsilon=1e-6), "sandwich": False, "gate": nn.silu, "theta": 1e4}
MODELS = {"gemma3": GEMMA | {"embed_scale": WIDTH**0.5}, "qwen3": QWEN | {"embed_scale": 1.0}}
# Where the norms of a layer are in each, by what comes after them.
NORMS = {
    "gemma3": ("input_", "post_attention_", "pre_feedforward_", "post_feedforward_"),
    "qwen3": ("input_", None, "post_attention_", None),
}


def rotated(x, theta):
    """Rotary embedding of (batch, time, heads, head)."""
    angles = np.arange(x.shape[1])[:, None] / theta ** (np.arange(0, HEAD, 2) / HEAD)
    cos, sin = (jnp.float32(f(np.concatenate([angles, angles], -1)))[None, :, None] for f in (np.cos, np.sin))
    first, second = jnp.split(x, 2, -1)
    return x * cos + jnp.concatenate([-second, first], -1) * sin


def attention(q, k, v):
    """Causal, with one head of keys and values for all queries."""
    time = q.shape[1]
    scores = jnp.einsum("bqhd,bkd->bhqk", q, k[:, :, 0]) / HEAD**0.5
    past = jnp.tril(jnp.ones((time, time), bool))[None, None]
    return jnp.einsum("bhqk,bkd->bqhd", jax.nn.softmax(jnp.where(past, scores, -jnp.inf)), v[:, :, 0])


class Decoder(nn.Module):
    """Norms before each block, of queries and keys by head, and after each block in a sandwich."""

    norm: jn.Spec
    sandwich: bool
    gate: object
    theta: float
    embed_scale: float

    def setup(self):
        norm = lambda: jn.linen.Norm(self.norm, train=False)
        dense = lambda n: nn.Dense(n, use_bias=False)
        each = range(SIZES["num_hidden_layers"])
        self.embed = nn.Embed(SIZES["vocab_size"], WIDTH)
        self.norms = [[norm() if i % 2 == 0 or self.sandwich else None for i in range(4)] for _ in each]
        self.qk_norms = [[norm(), norm()] for _ in each]
        self.qkvo = [[dense(n) for n in (HEADS * HEAD, HEAD, HEAD, WIDTH)] for _ in each]
        self.mlp = [[dense(n) for n in (SIZES["intermediate_size"],) * 2 + (WIDTH,)] for _ in each]
        self.last = norm()

    def __call__(self, tokens):
        stream = self.embed_scale * self.embed(tokens)
        for norms, qk_norms, qkvo, mlp in zip(self.norms, self.qk_norms, self.qkvo, self.mlp, strict=True):
            before, after, before_mlp, after_mlp = (norm or (lambda h: h) for norm in norms)
            stream = stream + after(self.attend(before(stream), qk_norms, qkvo))
            h = before_mlp(stream)
            stream = stream + after_mlp(mlp[2](self.gate(mlp[0](h)) * mlp[1](h)))
        return self.embed.attend(self.last(stream))

    def attend(self, h, qk_norms, qkvo):
        q, k, v = (f(h).reshape(*h.shape[:2], -1, HEAD) for f in qkvo[:3])
        q, k = (rotated(norm(x), self.theta) for norm, x in zip(qk_norms, (q, k), strict=True))
        return qkvo[3](attention(q, k, v).reshape(h.shape))


def params_of(name):
    """Weights of transformers by the names of linen: a norm's weight is its scale, whatever is added to it."""
    theirs = under("torch_decoders", f"{name}/weights")
    params = {
        "embed": {"embedding": theirs["model.embed_tokens.weight"]},
        "last": {"scale": theirs["model.norm.weight"]},
    }
    for i in range(SIZES["num_hidden_layers"]):
        of = lambda key, i=i: theirs[f"model.layers.{i}.{key}.weight"]
        for j, key in enumerate(NORMS[name]):
            if key:
                params[f"norms_{i}_{j}"] = {"scale": of(f"{key}layernorm")}
        for j, key in enumerate("qk"):
            params[f"qk_norms_{i}_{j}"] = {"scale": of(f"self_attn.{key}_norm")}
        for j, key in enumerate("qkvo"):
            params[f"qkvo_{i}_{j}"] = {"kernel": of(f"self_attn.{key}_proj").T}
        for j, key in enumerate(("gate", "up", "down")):
            params[f"mlp_{i}_{j}"] = {"kernel": of(f"mlp.{key}_proj").T}
    return params


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_equal_to_rounding(name):
    """As near to float64 as PyTorch's own in float32."""
    case = under("torch_decoders", name)
    model, params = Decoder(**MODELS[name]), params_of(name)
    tokens = jnp.int32(case["tokens"])
    assert jax.tree.map(np.shape, params) == jax.tree.map(
        np.shape, dict(model.init(jax.random.key(0), tokens)["params"])
    )
    logits = jax.jit(model.apply)({"params": params}, tokens)
    exact = case["exact logits"]
    ours, theirs = (np.abs(np.asarray(v, float) - exact).max() for v in (logits, case["logits"]))
    assert ours < max(2 * theirs, 1e-6 * np.abs(exact).max())


def test_a_weight_of_gemma_is_a_scale_as_it_is():
    """It is not 1 more: in bfloat16 that would lose its digits. In nnx the same."""
    weight = params_of("gemma3")["last"]["scale"]
    layer = jn.nnx.Norm(GEMMA["norm"], WIDTH, nnx.Rngs(0))
    np.testing.assert_array_equal(layer.scale[...], 0)
    layer.scale[...] = jnp.asarray(weight)
    x = jax.random.normal(jax.random.key(0), (3, WIDTH))
    want = np.asarray(x, float) / np.sqrt((np.asarray(x, float) ** 2).mean(-1, keepdims=True) + 1e-6) * (1.0 + weight)
    np.testing.assert_allclose(layer(x), want, rtol=1e-6, atol=1e-6)

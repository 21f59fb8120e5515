"""Drop-ins for the norms of flax.linen and flax.nnx: the same in everything that Flax gets right."""

import inspect
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import chex
import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm as jn

KEY = jax.random.key(0)
NAMES = ["BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm"]
IMAGES = (4, 5, 3, 8)
uniform = jax.nn.initializers.uniform()


@dataclass(frozen=True)
class Row:
    """A norm, its arguments in Flax, and data for it."""

    norm: str
    arguments: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = IMAGES
    dtype: Any = jnp.float32
    mask: tuple[int, ...] | None = None
    features: int = 8
    only: str = ""

    def data(self):
        x = 3 * jax.random.normal(KEY, self.shape, jnp.complex64 if self.dtype == jnp.complex64 else jnp.float32) + 1
        mask = None if self.mask is None else np.random.default_rng(0).random(self.mask) < 0.7
        return x.astype(self.dtype), mask

    def __str__(self):
        told = [f"{k}={getattr(v, '__name__', v)}" for k, v in self.arguments.items()]
        return " ".join([self.norm, *told, str(jnp.dtype(self.dtype)), *(["masked"] if self.mask else [])])


ROWS = [
    Row("BatchNorm"),
    Row("BatchNorm", {"axis": 1}, features=5),
    Row("BatchNorm", {"axis": (1, -1)}, only="linen"),
    Row("BatchNorm", {"momentum": 0.5, "epsilon": 0.1}, shape=(6, 8)),
    Row("BatchNorm", {"use_bias": False, "scale_init": uniform}),
    Row("BatchNorm", {"use_scale": False, "bias_init": uniform, "use_fast_variance": False}),
    Row("BatchNorm", {"dtype": jnp.bfloat16}),
    Row("BatchNorm", {"param_dtype": jnp.float16, "dtype": jnp.float32}),
    Row("BatchNorm", {"param_dtype": jnp.float16, "force_float32_reductions": False}, dtype=jnp.float16, only="linen"),
    Row("BatchNorm", dtype=jnp.bfloat16),
    Row("BatchNorm", {"dtype": jnp.float16}, dtype=jnp.float16),
    Row("BatchNorm", dtype=jnp.int32),
    Row("BatchNorm", {"dtype": jnp.complex64}, dtype=jnp.complex64, only="linen"),
    Row("BatchNorm", mask=(4, 5, 3, 1)),
    Row("BatchNorm", mask=(3, 1)),
    Row("BatchNorm", {"promote_dtype": lambda args, **_: args}, dtype=jnp.float16, only="nnx"),
    Row("LayerNorm"),
    Row("LayerNorm", {"reduction_axes": (1, 2), "feature_axes": -1, "scale_init": uniform}),
    Row("LayerNorm", {"reduction_axes": (1, 2, -1, 3), "feature_axes": (2, 3), "bias_init": uniform}, features=24),
    Row("LayerNorm", {"reduction_axes": 0, "feature_axes": 1}, features=5),
    Row("LayerNorm", {"use_scale": False, "use_bias": False, "epsilon": 1.0}, dtype=jnp.float16),
    Row("LayerNorm", {"dtype": jnp.bfloat16}),
    Row("LayerNorm", dtype=jnp.bfloat16),
    Row("LayerNorm", dtype=jnp.int8),
    Row("LayerNorm", mask=IMAGES),
    Row("RMSNorm"),
    Row("RMSNorm", {"reduction_axes": (1, 3), "feature_axes": (1, 3), "scale_init": uniform}, features=40),
    Row("RMSNorm", {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}, dtype=jnp.bfloat16),
    Row("RMSNorm", {"use_scale": False}, dtype=jnp.complex64),
    Row("RMSNorm", mask=(8,)),
    Row("GroupNorm", {"num_groups": 4, "scale_init": uniform}),
    Row("GroupNorm", {"num_groups": None, "group_size": 4}),
    Row("GroupNorm", {"num_groups": 2, "reduction_axes": (-3, -2, -1)}),
    Row("GroupNorm", {"num_groups": 2, "reduction_axes": (1, 3), "dtype": jnp.bfloat16}, only="linen"),
    Row("GroupNorm", {"num_groups": 2}, shape=(6, 8), dtype=jnp.bfloat16),
    Row("GroupNorm", {"num_groups": 2}, mask=IMAGES),
    Row("InstanceNorm", {"scale_init": uniform}),
    Row("InstanceNorm", {"feature_axes": 1}, features=5),
    Row("InstanceNorm", {"feature_axes": (1, -1), "bias_init": uniform, "use_fast_variance": False}, features=40),
    Row("InstanceNorm", {"dtype": jnp.bfloat16}, dtype=jnp.bfloat16),
    Row("InstanceNorm", {"use_bias": False}, mask=(4, 5, 3, 1)),
]


def run_linen(library, row):
    """Variables, the output, variables after training, the output in evaluation, and gradients."""
    training, evaluation = ({"use_running_average": e} if row.norm == "BatchNorm" else {} for e in (False, True))
    module, (x, mask) = getattr(library, row.norm)(**row.arguments), row.data()

    def run(x):
        before = module.init(KEY, x, **training)

        def loss(params, x):
            y, updates = module.apply(before | {"params": params}, x, mask=mask, mutable=["batch_stats"], **training)
            return distance(y), (y, updates)

        grads, (y, updates) = jax.grad(loss, inexact(x), has_aux=True)(before.get("params", {}), x)
        return before, y, updates, module.apply(before | updates, x, **evaluation), grads

    return jax.jit(run)(x)


def run_nnx(library, row):
    """The same."""
    x, mask = row.data()

    def run(x):
        module = getattr(library, row.norm)(row.features, **row.arguments, rngs=nnx.Rngs(0))
        graph, params, rest = nnx.split(module, nnx.Param, ...)
        before = nnx.to_pure_dict(nnx.state(module))

        def loss(params, x):
            module = nnx.merge(graph, params, rest, copy=True)
            y = module(x, mask=mask)
            return distance(y), (y, nnx.state(module, nnx.BatchStat))

        grads, (y, updates) = jax.grad(loss, inexact(x), has_aux=True)(params, x)
        nnx.update(module, updates)
        module.eval()
        return before, y, nnx.to_pure_dict(updates), module(x), nnx.to_pure_dict(grads[0]), grads[1:]

    return jax.jit(run)(x)


def distance(y):
    """From what a norm cannot give: the sum of squares alone hardly depends on x."""
    y = y if jnp.iscomplexobj(y) else y.astype(jnp.float32)
    return jnp.sum(jnp.abs(y - jnp.linspace(0, 1, y.size).reshape(y.shape).astype(y.dtype)) ** 2)


def inexact(x):
    """What to differentiate by: the parameters, and x unless it holds integers."""
    return (0, 1) if jnp.issubdtype(x.dtype, jnp.inexact) else (0,)


def close(got, want, narrow):
    """To the precision of the narrowest dtype on the way: Flax rounds a gradient twice where we do once."""
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    tolerance = 16 * max(float(jnp.finfo(got.dtype).eps), float(jnp.finfo(narrow).eps), 1e-5)
    size = np.abs(np.asarray(want, complex)).max(initial=1)
    np.testing.assert_allclose(np.asarray(got, complex), np.asarray(want, complex), rtol=0, atol=tolerance * size)


RUNS = {"linen": (run_linen, flax.linen, jn.linen), "nnx": (run_nnx, flax.nnx, jn.nnx)}
modules = pytest.mark.parametrize("module", RUNS)


@pytest.mark.parametrize(("module", "row"), [(m, r) for m in RUNS for r in ROWS if r.only in ("", m)], ids=str)
def test_the_same_as_flax(module, row):
    run, theirs, ours = RUNS[module]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        want = run(theirs, row)
    # Flax's rule for the dtype of y is promotion, which has no answer for mixed dtypes in strict mode.
    with jax.numpy_dtype_promotion("strict" if row.dtype == jnp.float32 else "standard"):
        got = run(ours, row)
    narrow = row.arguments.get("dtype") or jnp.float32
    jax.tree.map(partial(close, narrow=narrow), got, want)


@modules
@pytest.mark.parametrize("name", NAMES)
def test_the_same_class_but_for_its_call(module, name):
    theirs, ours = (getattr(library, name) for library in RUNS[module][1:])
    assert issubclass(ours, theirs)
    extras = {"scale_offset": 0.0} | ({"ddof": 0} if name == "BatchNorm" else {})
    signatures = [inspect.signature(c.__init__).parameters for c in (ours, theirs)]
    added = {name: p for name, p in signatures[0].items() if name in extras}
    assert {name: p.default for name, p in added.items()} == extras
    assert all(p.kind is p.KEYWORD_ONLY for p in added.values())
    kept = [(p.name, p.kind, p.default) for p in signatures[0].values() if p.name not in extras]
    assert kept == [(p.name, p.kind, p.default) for p in signatures[1].values()]
    calls = [inspect.signature(c.__call__).parameters.values() for c in (ours, theirs)]
    assert [(p.name, p.kind, p.default) for p in calls[0]] == [(p.name, p.kind, p.default) for p in calls[1]]


@modules
@pytest.mark.parametrize("name", NAMES)
def test_initialisation_is_the_same_in_every_mode_and_uses_no_mapped_axis(module, name):
    arguments = {"axis_name": "devices", "axis_index_groups": [[0], [1]]} | (
        {"num_groups": 2} if name == "GroupNorm" else {}
    )
    ours, x = getattr(RUNS[module][2], name), 3 * jnp.ones((4, 5, 8))
    if module == "nnx":
        found = [nnx.to_pure_dict(nnx.state(ours(8, **arguments, rngs=nnx.Rngs(0))))]
    else:
        modes = [{"use_running_average": mode} for mode in (True, False)] if name == "BatchNorm" else [{}]
        found = [ours(**arguments).init(KEY, x, **mode) for mode in modes]
        chex.assert_trees_all_equal(found[0], found[-1])
    for path, value in jax.tree.leaves_with_path(found[0]):
        np.testing.assert_array_equal(value, 1 if path[-1].key in ("scale", "var") else 0)


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_gradients_flow_through_new_running_statistics(library):
    """As of meta-learning through statistics, in linen; in nnx and in a spec's state they have no derivative in x."""
    x = 3 * jax.random.normal(KEY, IMAGES) + 1
    weights = jax.random.normal(jax.random.key(1), (2, 8))

    def statistics(x, module):
        if library == "nnx":
            norm = module(8, momentum=0.9, rngs=nnx.Rngs(0))
            norm(x)
            return norm.mean[...], norm.var[...]
        norm = module(use_running_average=False, momentum=0.9)
        new = norm.init_with_output(KEY, x)[1] | norm.apply(norm.init(KEY, x), x, mutable=["batch_stats"])[1]
        return new["batch_stats"]["mean"], new["batch_stats"]["var"]

    loss = lambda x, module: sum((w * jnp.sin(v)).sum() for w, v in zip(weights, statistics(x, module), strict=True))
    modules = getattr(jn, library).BatchNorm, getattr(flax, library).BatchNorm
    ours, theirs = (jax.jit(jax.grad(partial(loss, module=m)))(x) for m in modules)
    assert (np.abs(theirs).max() > 1e-4) == (library == "linen")
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7)
    bn = jn.BatchNorm()
    state_of = lambda x: sum(v.sum() for v in bn.apply(*bn.init(8), x, train=True)[1][:2])
    np.testing.assert_array_equal(jax.grad(state_of)(x), 0)

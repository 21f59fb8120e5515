"""Norms beside data: each number as NumPy says it, and what is said of a model that is wrong in one way or another."""

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import says

import jaxnorm as jn
from benchmarks.networks import LinenResNet18

SIZES = (6, 3, 5)
BATCHES = [jax.random.normal(jax.random.key(i), (n, 4)) * jnp.arange(1.0, 5.0)[None] + i for i, n in enumerate(SIZES)]
DATA = np.concatenate(BATCHES).astype(float)
STATE = jn.RunningStats(jnp.array([0.0, 1.0, -1.0, 8.0]), jnp.array([1.0, 4.0, 0.5, 100.0]))
AFFINE = jn.Affine(jnp.array([1.0, 0.0, -2.0, 0.1]), jnp.array([0.0, 1.0, 1.0, 5.0]))


def step(state, x, spec=jn.BatchNorm(), **kwargs):  # noqa: B008
    return spec.apply(AFFINE, state, x, train=False, **kwargs)[1]


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def as_numpy_says(found):
    mean, var = DATA.mean(0), DATA.var(0)
    close(found.mean_distance, abs(STATE.mean - mean) / np.sqrt(var))
    close(found.var_ratio, STATE.var / var)
    of_batches = [(np.mean(x, 0), np.var(x, 0)) for x in map(partial(np.asarray, dtype=float), BATCHES)]
    close(found.batch_mean_error, np.sqrt(np.mean([(m - mean) ** 2 for m, _ in of_batches], 0) / var))
    close(found.batch_var_error, np.sqrt(np.mean([(v / var - 1) ** 2 for _, v in of_batches], 0)))
    assert (found.skipped == 0).all()
    assert all(v.dtype == np.float32 and v.shape == (4,) for v in found)


def y_as_numpy_says(found):
    y = (DATA - np.asarray(STATE.mean)) / np.sqrt(np.asarray(STATE.var) + 1e-5)
    y = y * np.asarray(AFFINE.scale) + np.asarray(AFFINE.bias)
    close(found.y_mean, y.mean(0))
    close(found.y_std, y.std(0))
    close(found.start_weight, np.full(4, 0.9**30))


def test_a_state():
    (found,) = jn.inspect(step, STATE, BATCHES).values()
    as_numpy_says(found)
    assert np.isnan([found.start_weight, found.y_mean, found.y_std]).all()
    nested = jn.inspect(lambda s, x: {"a": step(s["a"], x), "b": s["b"]}, {"a": STATE, "b": jnp.ones(3)}, BATCHES)
    as_numpy_says(nested["['a']"])


class Net(nn.Module):
    norm: nn.Module

    @nn.compact
    def __call__(self, x, train: bool = False):
        return self.norm(x, use_running_average=not train)


@pytest.mark.parametrize("make", [jn.linen.Norm, jn.linen.BatchNorm])
def test_linen(make):
    norm = jn.BatchNorm(momentum=0.9) if make is jn.linen.Norm else None
    options = {"spec": norm} if norm else {"momentum": 0.9}
    model = Net(make(**options))
    stats = {"norm": {"mean": STATE.mean, "var": STATE.var}}
    variables = {"params": {"norm": AFFINE._asdict()}, "batch_stats": stats}
    found = jn.linen.inspect(model, variables, BATCHES, steps=30)
    assert list(found) == ["norm"]
    as_numpy_says(found["norm"])
    y_as_numpy_says(found["norm"])


@pytest.mark.parametrize(
    "make", [partial(jn.nnx.Norm, jn.BatchNorm(momentum=0.9)), partial(jn.nnx.BatchNorm, momentum=0.9)]
)
def test_nnx(make):
    model = nnx.Sequential(make(4, rngs=nnx.Rngs(0)))
    for name, value in (AFFINE._asdict() | {"mean": STATE.mean, "var": STATE.var}).items():
        getattr(model.layers[0], name).set_value(value)
    before = jax.tree.leaves(nnx.state(model))
    found = jn.nnx.inspect(model, BATCHES, steps=30)
    as_numpy_says(found["layers.0"])
    y_as_numpy_says(found["layers.0"])
    assert all(a is b for a, b in zip(before, jax.tree.leaves(nnx.state(model)), strict=True))


def test_what_data_hide():
    """Padding, a channel that is not finite in one batch, a constant one, and averages that know their weight."""
    x = jnp.stack([jnp.arange(4.0), jnp.full(4, 2.0), jnp.array([0.0, jnp.nan, 1, 2])], 1)
    masked = [(x, jnp.array([1, 1, 1, 0], bool)[:, None]), (x.at[1, 2].set(1), jnp.ones((4, 1), bool))]
    state = jn.BatchNorm(debias=True).init(3)[1]
    (found,) = jn.inspect(
        lambda state, batch: jn.batch_norm(batch[0], state, train=False, where=batch[1])[1], state, masked
    ).values()
    assert found.skipped.tolist() == [0, 0, 1]
    assert np.isnan(found.mean_distance).tolist() == [False, True, False]
    close(found.mean_distance[0], np.mean([0, 1, 2, 0, 1, 2, 3]) / np.std([0, 1, 2, 0, 1, 2, 3]))
    assert found.start_weight.tolist() == [1, 1, 1]
    moved = jn.update_running(state, jn.moments(x[:, :1] * jnp.ones((1, 3)), 0), momentum=jnp.float32(0.9))
    (found,) = jn.inspect(lambda state, x: jn.batch_norm(x, state, train=False)[1], moved, [x]).values()
    assert found.start_weight.tolist() == [0, 0, 0]


def test_updates_that_were_thrown_away():
    """Whatever steps= says: nothing was ever added."""
    x = jax.random.normal(jax.random.key(0), (8, 3)) + 5
    model = jn.linen.BatchNorm(use_running_average=True)
    found = jn.linen.inspect(model, model.init(jax.random.key(0), x), [x], steps=3000)[""]
    assert found.start_weight.tolist() == [1, 1, 1]
    norm = jn.nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    jax.jit(lambda norm, x: norm(x))(norm, x)  # as an argument, nnx gives no message, and keeps nothing
    (found,) = jn.nnx.inspect(norm, [x]).values()
    assert found.start_weight.tolist() == [1, 1, 1]
    (found,) = jn.inspect(
        lambda state, x: jn.batch_norm(x, state, train=False)[1], jn.BatchNorm().init(3)[1], [x]
    ).values()
    assert found.start_weight.tolist() == [1, 1, 1]


def test_flax_norms_have_a_drop_in():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=True)(x)

    x, theirs = jnp.ones((4, 3)), Net()
    variables = theirs.init(jax.random.key(0), x)
    says(lambda: jn.linen.inspect(theirs, variables, [x]), "jaxnorm.linen.patched()")
    says(lambda: jn.nnx.inspect(nnx.BatchNorm(3, rngs=nnx.Rngs(0)), [x]), "jaxnorm.nnx.patched()")
    with jn.linen.patched():
        assert jn.linen.inspect(theirs, variables, [x, 2 * x])["BatchNorm_0"].skipped.tolist() == [0, 0, 0]


GOOD = jn.Inspection(*(np.full(20, v, np.float32) for v in (0.01, 1.0, 0.05, 0.1, 0.0, 0.0, 1.0, 0)))
few = lambda value, rest: np.where(np.arange(20) < 2, value, rest).astype(np.float32)
WRONG = {
    r"74 % their start at \(0, 1\)": {"start_weight": few(0.74, 0)},
    r"still at their start, \(0, 1\): no batch was ever added": {"start_weight": few(1, 1)},
    r"of 10 % of the channels are not those of these data: the mean is up to 3 σ away": {"mean_distance": few(3, 0)},
    "variances are 0.1 to 1 times": {"var_ratio": few(0.1, 1)},
    "off by 0.5 σ": {"batch_mean_error": few(0, 0.5)},
    "2 of 20 channels are dead": {"y_std": few(1e-3, 1)},
    "2 of 20 channels are on one side of 0": {"y_mean": few(-4, 0)},
    "2 channels had no data, or NaN or Inf among them, in up to 3 batches": {"skipped": few(3, 0)},
}


@pytest.mark.parametrize("sentence", WRONG)
def test_findings(sentence):
    found = {"a": GOOD, "b": GOOD._replace(**WRONG[sentence])}
    said = jn.inspection.findings(found)
    assert said["a"] == []
    assert len(said["b"]) == 1
    says(lambda: raising(said["b"][0]), sentence)


def raising(text):
    raise ValueError(text)


@pytest.mark.long
def test_networks_as_they_are_trained(tmp_path):
    """After few steps with a high momentum, running statistics are mostly their start; recalibrated, they are fine."""
    batches = [jax.random.normal(jax.random.key(i), (8, 8, 8, 3)) + 2 for i in range(3)]
    model = LinenResNet18(partial(jn.linen.BatchNorm, use_running_average=False), width=4)
    variables = model.init(jax.random.key(0), batches[0])
    found = jn.linen.inspect(model, variables, batches, steps=30)
    assert len(found) == 21
    wrong = jn.inspection.findings(found)
    assert all("still at their start" in sentences[0] for sentences in wrong.values())
    after = jn.linen.inspect(model, jn.linen.recalibrate(model, variables, batches), batches)
    assert max(float(np.nanmax(s.mean_distance)) for s in after.values()) < 1e-3
    close(np.nanmin([np.nanmin(s.var_ratio) for s in after.values()]), 1)
    table = jn.inspection.table(found)
    assert (table.row_count, len(table.columns)) == (21, 9)
    jn.inspection.heat_map(found, tmp_path / "norms.png")
    assert (tmp_path / "norms.png").stat().st_size > 10_000


MISTAKES = {
    "no running statistics": lambda: jn.inspect(lambda s, x: s, {"a": jnp.ones(3)}, BATCHES),
    "no batches": lambda: jn.inspect(step, STATE, []),
    "no data came to the state": lambda: jn.inspect(lambda s, x: s, STATE, BATCHES),
    "no norm but frozen ones": lambda: jn.inspect(partial(step, spec=jn.freeze(jn.BatchNorm())), STATE, BATCHES),
    "linen.inspect: a batch gives the model 3": lambda: jn.linen.inspect(
        Net(jn.linen.BatchNorm()), {"batch_stats": {"norm": {"mean": STATE.mean, "var": STATE.var}}}, [(1, True, 2)]
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes(message):
    says(MISTAKES[message], message)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jn.linen.BatchNorm(use_running_average=True, momentum=0.9, name="norm")(x)


Jitted = nn.jit(Block)


def test_what_nobody_knows_of_y():
    """A part that was traced for another, a scale in the call, a norm that does more than its statistics say."""

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Jitted(name="b")(Jitted(name="a")(x))

    stats = {"norm": {"mean": STATE.mean, "var": STATE.var}}
    params = {"norm": AFFINE._asdict()}
    variables = {"params": {"a": params, "b": params}, "batch_stats": {"a": stats, "b": stats}}
    found = jn.linen.inspect(Twice(), variables, BATCHES)
    assert len(found) == 2
    as_numpy_says(next(stats for place, stats in found.items() if "a" in place))

    class Given(nn.Module):
        spec: object

        @nn.compact
        def __call__(self, x, train: bool = False):
            given = {} if self.spec.use_scale else {"scale": 2 * jnp.ones(4)}
            return jn.linen.Norm(self.spec, name="norm")(x, train=train, **given)

    for spec in (jn.BatchNorm(use_scale=False), jn.BatchInstanceNorm(), jn.InstanceNorm(track=True)):
        model, batches = Given(spec), [jnp.stack([x, x + 1]) for x in BATCHES]
        found = jn.linen.inspect(model, model.init(jax.random.key(0), batches[0]), batches)["norm"]
        assert np.isnan(found.y_std).all()
        assert np.isfinite(found.mean_distance).all()
    norm = jn.nnx.Norm(jn.BatchNorm(use_bias=False), 4)
    assert np.isnan(jn.nnx.inspect(norm, BATCHES)["model"].y_mean).all()


def test_pictures_and_tables_of_anything(tmp_path):
    """Norms in a scan, of one channel, of none, without any number; places that look like markup."""
    stacked = jax.tree.map(lambda v: np.stack([v, v]), GOOD)
    none = jn.Inspection(*np.zeros((8, 0), np.float32))
    nothing = jn.Inspection(*np.full((8, 1), np.nan, np.float32))
    found = {
        "scan": stacked,
        "[/a]": GOOD,
        "none": none,
        "nothing": nothing,
        "flat": GOOD._replace(var_ratio=np.zeros(20)),
    }
    assert jn.inspection.findings(found)["scan"] == []
    assert jn.inspection.table(found).row_count == 5
    jn.inspection.heat_map(found, tmp_path / "norms.png")
    says(lambda: jn.inspection.heat_map({}, tmp_path / "norms.png"), "nothing was found")


def test_tables_of_flax_name_specs():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool = False):
            x = jn.linen.Norm(jn.BatchNorm())(x, train=train)
            return jn.linen.Norm(jn.LayerNorm())(
                jn.linen.Norm(jn.freeze(jn.InstanceNorm()))(x, train=True), train=train
            )

    wide = {"console_kwargs": {"width": 200, "force_terminal": False}}
    x = jnp.ones((2, 3, 4))
    table = jn.linen.tabulate(Two(), jax.random.key(0), **wide)(x)
    for row in (r"Norm_0 +│ BatchNorm ", r"Norm_2 +│ frozen InstanceNorm ", r"Norm_1 +│ LayerNorm "):
        assert re.search(row, table)
    assert sorted(Two().init(jax.random.key(0), x)["params"]) == ["Norm_0", "Norm_1", "Norm_2"]
    model = nnx.Sequential(jn.nnx.Norm(jn.BatchNorm(), 4), jn.nnx.LayerNorm(4, rngs=nnx.Rngs(0)))
    table = jn.nnx.tabulate(model, x, **wide)
    assert re.search(r"layers/0 +│ BatchNorm ", table)
    assert re.search(r"layers/1 +│ LayerNorm ", table)
    assert type(model.layers[0]) is jn.nnx.Norm

"""Variables go wherever Flax's go, and back: files, scans, averages, gradients, with no special case for the state."""

import functools
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax

import jaxnorm as jn

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (16, 3)) * 2 + 5
XS = jnp.stack([X, 2 * X, X - 3, X[::-1] ** 2])
Y = jnp.sin(X.sum(1, keepdims=True))
OURS = ["Norm", "BatchNorm"]

equal = functools.partial(jax.tree.map, np.testing.assert_array_equal)
close = functools.partial(jax.tree.map, functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6))
both = pytest.mark.parametrize("library", ["linen", "nnx"])
ours = pytest.mark.parametrize("kind", OURS)
all_three = pytest.mark.parametrize("kind", ["Flax", *OURS])


def kinds(tree):
    """Structure, shapes and dtypes: what a scan, a checkpoint and a compiled program go by."""
    return jax.tree.map(lambda v: (v.shape, str(v.dtype)), jax.eval_shape(lambda: tree))


class LinenNet(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(4)(x)
        if self.kind == "Norm":
            x = jn.linen.Norm(jn.BatchNorm(momentum=0.9), name="norm")(x, train=train)
        else:
            norm = jn.linen.BatchNorm if self.kind == "BatchNorm" else nn.BatchNorm
            x = norm(use_running_average=not train, momentum=0.9, name="norm")(x)
        return nn.Dense(1)(nn.relu(x))


class NNXNet(nnx.Module):
    def __init__(self, kind):
        rngs = nnx.Rngs(0)
        self.first, self.last = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)
        if kind == "Norm":
            self.norm = jn.nnx.Norm(jn.BatchNorm(momentum=0.9), 4)
        else:
            self.norm = (jn.nnx if kind == "BatchNorm" else nnx).BatchNorm(4, momentum=0.9, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.norm(self.first(x))))


class Linen:
    """A network as functions of its variables, a dict of dicts."""

    def __init__(self, kind):
        self.net = LinenNet(kind)
        self.initial = jax.jit(lambda: self.net.init(KEY, X, train=False))()

    def evaluate(self, variables, x=X):
        return self.net.apply(variables, x, train=False)

    def train(self, variables, x=X):
        """y, and the variables with new running statistics."""
        y, updates = self.net.apply(variables, x, train=True, mutable="batch_stats")
        return y, {**variables, **updates}

    def stats(self, variables):
        return variables["batch_stats"]["norm"]

    def parameters(self, variables):
        return variables["params"]

    def learned(self, variables, params):
        return {**variables, "params": params}


class NNX:
    """The same of nnx: its variables are the pure dict of the state, of parameters and statistics alike."""

    def __init__(self, kind):
        self.model = NNXNet(kind)
        self.graph, self.state = nnx.split(self.model)
        self.frozen = nnx.graphdef(nnx.view(self.model, use_running_average=True))
        self.initial = nnx.to_pure_dict(self.state)

    def load(self, graph, variables):
        state = jax.tree.map(jnp.copy, self.state)
        nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, variables))
        return nnx.merge(graph, state)

    def evaluate(self, variables, x=X):
        return self.load(self.frozen, variables)(x)

    def train(self, variables, x=X):
        model = self.load(self.graph, variables)
        return model(x), nnx.to_pure_dict(nnx.state(model))

    def stats(self, variables):
        return {name: v for name, v in variables["norm"].items() if name not in ("scale", "bias")}

    def parameters(self, variables):
        affine = {name: variables["norm"][name] for name in ("scale", "bias")}
        return {"first": variables["first"], "last": variables["last"], "norm": affine}

    def learned(self, variables, params):
        return {**params, "norm": {**variables["norm"], **params["norm"]}}


@functools.cache
def network(library, kind):
    # Made once, with numbers in it also where the first to ask is being traced.
    with jax.numpy_rank_promotion("allow"), jax.ensure_compile_time_eval():
        return {"linen": Linen, "nnx": NNX}[library](kind)


@pytest.fixture(autouse=True)
def _flax_broadcasts():
    with jax.numpy_rank_promotion("allow"):
        yield


def loss(net, variables, x=X):
    y, new = net.train(variables, x)
    return ((y - Y) ** 2).mean(), new


def sgd(net, variables, x=X):
    """A step of training: new parameters and new statistics."""

    def of(params):
        return loss(net, net.learned(variables, params), x)

    grads, new = jax.grad(of, has_aux=True)(net.parameters(variables))
    return net.learned(new, jax.tree.map(lambda p, g: p - 0.1 * g, net.parameters(variables), grads))


@functools.cache
def trained(library, kind):
    """After four steps, with the statistics of four batches."""
    net = network(library, kind)
    with jax.numpy_rank_promotion("allow"):
        step = jax.jit(lambda variables, x: sgd(net, variables, x))
        variables = net.initial
        for x in XS:
            variables = step(variables, x)
        return variables


@functools.cache
def programs(library, kind):
    """What follows from variables: predictions, and the statistics after one more batch."""
    net = network(library, kind)
    return jax.jit(lambda v: (net.evaluate(v), net.stats(net.train(v)[1])))


# What a program does to keep variables, and to have them back where it knows `like`, its own.


def by_bytes(tree, like, path):
    return serialization.from_bytes(like, serialization.to_bytes(tree))


def by_state_dict(tree, like, path):
    return serialization.from_state_dict(like, serialization.to_state_dict(tree))


def by_msgpack(tree, like, path):
    return serialization.msgpack_restore(serialization.msgpack_serialize(jax.tree.map(np.asarray, tree)))


def by_pickle(tree, like, path):
    return pickle.loads(pickle.dumps(tree))


def by_orbax(tree, like, path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "checkpoint", tree)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path / "checkpoint", jax.tree.map(ocp.utils.to_shape_dtype_struct, like))


def by_safetensors(tree, like, path):
    safetensors = pytest.importorskip("safetensors.numpy")
    flat = {name: np.asarray(v) for name, v in flatten_dict(tree, sep=".").items()}
    safetensors.save_file(flat, path / "model.safetensors")
    return unflatten_dict(safetensors.load_file(path / "model.safetensors"), sep=".")


ways = pytest.mark.parametrize(
    "way",
    [by_bytes, by_state_dict, by_msgpack, by_pickle, by_orbax, by_safetensors],
    ids=lambda way: way.__name__.removeprefix("by_"),
)


@both
@ours
def test_variables_are_those_of_flax(library, kind):
    """One tree: names, shapes, dtypes, and at first the values."""
    mine, theirs = network(library, kind), network(library, "Flax")
    assert kinds(mine.initial) == kinds(theirs.initial)
    assert mine.stats(mine.initial).keys() == {"mean", "var"}
    equal(mine.stats(mine.initial), theirs.stats(theirs.initial))


@both
@ours
@ways
@pytest.mark.parametrize("back", [False, True], ids=["to ours", "to Flax's"])
def test_round_trips(library, kind, way, back, tmp_path):
    """They give the same predictions there, and go on with the same statistics."""
    writer, reader = (kind, "Flax") if back else ("Flax", kind)
    written = trained(library, writer)
    blank = jax.tree.map(jnp.zeros_like, network(library, reader).initial)
    read = way(written, blank, tmp_path)
    equal(read, written)
    assert kinds(read) == kinds(blank)
    want, goes_on = programs(library, writer)(written)
    assert np.ptp(want) > 0.1
    close(programs(library, reader)(read), (want, goes_on))


@ways
@pytest.mark.parametrize("spec", [jn.BatchNorm, jn.InstanceNorm, jn.BatchInstanceNorm])
def test_states_of_specs_round_trip(spec, way, tmp_path):
    """Without Flax's modules: a NamedTuple in a dict, or by its names where a format knows dicts alone."""
    norm = spec(track=True) if spec is jn.InstanceNorm else spec()
    x = X[:, None] * jnp.array([[[1.0], [2.0]]])
    params, blank = norm.init(3)
    _, state = norm.apply(params, blank, x, train=True)
    if way in (by_msgpack, by_safetensors):
        named = {name: v for name, v in state._asdict().items() if v is not None}
        assert named.keys() == {"mean", "var"}
        read = jn.RunningStats(**way(named, None, tmp_path))
    else:
        read = way({"norm": state}, {"norm": blank}, tmp_path)["norm"]
    assert type(read) is jn.RunningStats
    equal(read, state)
    assert kinds(read) == kinds(blank)
    equal(norm.apply(params, read, x, train=False)[0], norm.apply(params, state, x, train=False)[0])


@pytest.mark.parametrize("spec", [jn.BatchNorm(), jn.BatchInstanceNorm(), jn.InstanceNorm(track=True)])
def test_the_state_is_mean_and_variance_alone(spec):
    _, state = spec.init(3)
    assert state._fields == ("mean", "var", "weight_sum")
    assert state.weight_sum is None
    assert [str(v.dtype) for v in jax.tree.leaves(state)] == ["float32", "float32"]
    equal(state, jn.RunningStats(jnp.zeros(3), jnp.ones(3)))
    _, after = spec.apply(spec.init(3)[0], state, XS, train=True)
    assert kinds(after) == kinds(state)


@pytest.mark.parametrize("kwargs", [{"debias": True}, {"momentum": None}], ids=["debias", "cumulative"])
@ways
def test_a_weight_sum_travels_too(kwargs, way, tmp_path):
    module = jn.linen.Norm(jn.BatchNorm(**kwargs))
    blank = module.init(KEY, X, train=False)
    variables = {**blank, **module.apply(blank, X, train=True, mutable="batch_stats")[1]}
    read = way(variables, blank, tmp_path)
    equal(read, variables)
    assert kinds(read) == kinds(blank)
    after = [module.apply(v, 3 * X, train=True, mutable="batch_stats")[1] for v in (read, variables)]
    equal(*after)
    assert (after[0]["batch_stats"]["weight_sum"] > variables["batch_stats"]["weight_sum"]).all()


@both
@ours
def test_training_is_a_scan_from_flax_variables(library, kind):
    """The carry keeps its structure, and the steps are Flax's."""
    start = network(library, "Flax").initial

    @functools.partial(jax.jit, static_argnums=0)
    def run(kind, variables):
        net = network(library, kind)
        step = lambda variables, x: (sgd(net, variables, x), net.stats(variables))
        return lax.scan(step, variables, XS)

    (got, history), (want, wanted) = run(kind, start), run("Flax", start)
    assert kinds(got) == kinds(start)
    close(history, wanted)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), got, want)


@both
@all_three
def test_an_average_of_all_variables_in_a_scan(library, kind):
    """optax.incremental_update, as for evaluation by averaged weights."""
    net = network(library, kind)

    def step(carry, x):
        variables, average = carry
        variables = sgd(net, variables, x)
        return (variables, optax.incremental_update(variables, average, 0.25)), variables

    run = jax.jit(lambda v: lax.scan(step, (v, v), XS))
    (_, average), history = run(net.initial)
    assert kinds(average) == kinds(net.initial)

    def exact(first, all_of_them):
        value = np.asarray(first, float)
        for v in np.asarray(all_of_them, float):
            value = 0.75 * value + 0.25 * v
        return value

    close(average, jax.tree.map(exact, net.initial, history))
    assert np.isfinite(net.evaluate(average)).all()
    # Outside of a scan, too.
    once = optax.incremental_update(net.initial, trained(library, kind), 0.25)
    assert kinds(once) == kinds(net.initial)


@both
@all_three
def test_devices_average_their_statistics_by_pmean(library, kind):
    """As Flax's ImageNet example does before it evaluates, and then trains on."""
    net = network(library, kind)
    replicate = lambda v: jnp.broadcast_to(v, (4, *v.shape))

    @functools.partial(jax.vmap, axis_name="batch")
    def step(variables, x):
        return sgd(net, variables, x)

    synced = jax.vmap(lambda stats: lax.pmean(stats, "batch"), axis_name="batch")
    put = lambda variables, stats: (
        {**variables, "batch_stats": {"norm": stats}}
        if library == "linen"
        else {**variables, "norm": {**variables["norm"], **stats}}
    )

    def both_steps(variables, _):
        apart = step(variables, XS)
        variables = put(apart, synced(net.stats(apart)))
        return variables, (net.stats(apart), net.stats(variables))

    start = jax.tree.map(replicate, net.initial)
    end, (apart, together) = jax.jit(lambda v: lax.scan(both_steps, v, None, length=2))(start)
    assert kinds(end) == kinds(start)
    means = jax.tree.map(lambda v: np.broadcast_to(np.asarray(v, float).mean(1, keepdims=True), v.shape), apart)
    close(together, means)
    assert np.ptp(apart["mean"], 1).min() > 0.05


@both
@ours
def test_gradients_with_respect_to_all_variables(library, kind):
    """In evaluation those of Flax's; in training new statistics give the momentum back to old ones."""
    variables = trained(library, "Flax")
    nets = network(library, kind), network(library, "Flax")
    of = lambda net: jax.jit(jax.grad(lambda v: ((net.evaluate(v) - Y) ** 2).mean()))(variables)
    grads = [of(net) for net in nets]
    close(*grads)
    assert kinds(grads[0]) == kinds(variables)
    net = nets[0]
    assert np.abs(net.stats(grads[0])["mean"]).max() > 1e-4
    assert np.abs(net.stats(grads[0])["var"]).max() > 1e-5
    of_state = lambda v: sum(jnp.sum(s) for s in net.stats(net.train(v)[1]).values())
    by_state = net.stats(jax.jit(jax.grad(of_state))(variables))
    np.testing.assert_allclose(by_state["mean"], 0.9, rtol=1e-6)
    np.testing.assert_allclose(by_state["var"], 0.9, rtol=1e-6)
    of_y = jax.jit(jax.grad(lambda v: loss(net, v)[0]))(variables)
    jax.tree.map(lambda g: np.testing.assert_array_equal(g, 0), net.stats(of_y))


@both
@all_three
@pytest.mark.parametrize("which", ["parameters", "all variables"])
def test_steps_of_an_optimizer_over_several_batches(library, kind, which):
    """optax.MultiSteps in a scan equals steps by averaged gradients by hand; statistics move with every batch."""
    net = network(library, kind)
    optimizer = optax.MultiSteps(optax.sgd(0.1), 2)
    take = net.parameters if which == "parameters" else lambda variables: variables
    put = net.learned if which == "parameters" else lambda old, new: new

    def gradient(variables, x):
        return jax.grad(lambda p: loss(net, put(variables, p), x), has_aux=True)(take(variables))

    def with_stats(variables, new):
        return net.learned(new, net.parameters(variables))

    def step(carry, x):
        variables, opt = carry
        grads, new = gradient(variables, x)
        updates, opt = optimizer.update(grads, opt, take(variables))
        learned = put(variables, optax.apply_updates(take(variables), updates))
        return (with_stats(learned, new), opt), optimizer.has_updated(opt)

    with jax.numpy_dtype_promotion("standard"):
        start = net.initial, optimizer.init(take(net.initial))
        (got, _), updated = jax.jit(lambda carry: lax.scan(step, carry, XS))(start)
    np.testing.assert_array_equal(updated, [False, True, False, True])

    gradient = jax.jit(gradient)
    variables = net.initial
    for pair in (XS[:2], XS[2:]):
        first, after = gradient(variables, pair[0])
        second, after = gradient(with_stats(variables, after), pair[1])
        moved = jax.tree.map(lambda p, a, b: p - 0.05 * (a + b), take(variables), first, second)
        variables = with_stats(put(variables, moved), after)
    close(got, variables)
    assert kinds(got) == kinds(net.initial)


@ours
def test_splitting_and_merging_with_the_state_of_flax(kind):
    """nnx.merge counts leaves: there are as many."""
    mine, theirs = network("nnx", kind), network("nnx", "Flax")
    learnt = theirs.load(theirs.graph, trained("nnx", "Flax"))
    want = nnx.view(learnt, use_running_average=True)(X)
    state = nnx.state(learnt)
    close(nnx.merge(mine.frozen, jax.tree.map(jnp.copy, state))(X), want)
    back = mine.load(mine.graph, trained("nnx", kind))
    close(nnx.merge(theirs.frozen, nnx.state(back))(X), nnx.view(back, use_running_average=True)(X))
    # By kinds of variables; and into a model that is there.
    graph, params, stats = nnx.split(back, nnx.Param, nnx.BatchStat)
    assert len(jax.tree.leaves(stats)) == 2
    _, of_flax, stats_of_flax = nnx.split(learnt, nnx.Param, nnx.BatchStat)
    assert jax.tree.structure(nnx.to_pure_dict(params)) == jax.tree.structure(nnx.to_pure_dict(of_flax))
    close(nnx.view(nnx.merge(graph, of_flax, stats_of_flax), use_running_average=True)(X), want)
    model = NNXNet(kind)
    nnx.update(model, state)
    close(nnx.view(model, use_running_average=True)(X), want)
    close(nnx.merge(graph, params, stats_of_flax).norm.mean[...], learnt.norm.mean[...])


@ours
def test_the_state_of_nnx_in_a_checkpoint_of_orbax(kind, tmp_path):
    """As it is, with its variables, in both directions."""
    for writer, reader in ((kind, "Flax"), ("Flax", kind)):
        written = network("nnx", writer)
        state = nnx.state(written.load(written.graph, trained("nnx", writer)))
        like = jax.tree.map(jnp.zeros_like, network("nnx", reader).state)
        read = by_orbax(state, like, tmp_path / writer)
        equal(nnx.to_pure_dict(read), nnx.to_pure_dict(state))
        close(nnx.merge(network("nnx", reader).frozen, read)(X), written.evaluate(trained("nnx", writer)))


@ours
def test_variables_of_linen_frozen_and_thawed(kind):
    """flax.core.freeze, as older programs have it."""
    frozen = nn.FrozenDict(trained("linen", "Flax"))
    net = network("linen", kind)
    close(net.evaluate(frozen), network("linen", "Flax").evaluate(frozen))
    _, updates = net.net.apply(frozen, X, train=True, mutable="batch_stats")
    assert kinds(updates["batch_stats"]) == kinds(frozen["batch_stats"].unfreeze())


@both
@ours
def test_replicas_of_flax_variables_merge(library, kind):
    """And parts of batches are taken together: one tree, before and after."""
    net = network(library, kind)
    stats = [net.stats(net.train(trained(library, "Flax"), x)[1]) for x in XS[:2]]
    merged = jn.merge_running(*stats)
    assert kinds(merged) == kinds(stats[0])
    means = np.stack([np.asarray(s["mean"], float) for s in stats])
    np.testing.assert_allclose(merged["mean"], means.mean(0), rtol=1e-5)
    variances = np.stack([np.asarray(s["var"], float) for s in stats])
    np.testing.assert_allclose(merged["var"], variances.mean(0) + means.var(0), rtol=1e-5)
    committed = jn.commit(jn.accumulate(stats[0]))
    equal(committed, stats[0])
    assert kinds(committed) == kinds(stats[0])


@both
@ours
def test_predictions_by_a_cast_of_all_variables(library, kind):
    """To half precision and back: as of variables that were rounded."""
    net = network(library, kind)
    rounded = jax.tree.map(lambda v: v.astype(jnp.bfloat16).astype(v.dtype), trained(library, kind))
    assert kinds(rounded) == kinds(net.initial)
    close(net.evaluate(rounded), network(library, "Flax").evaluate(rounded))

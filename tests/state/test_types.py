"""Exported programs that take and give the pytrees of this library serialize, and load again, also elsewhere."""

import copy
import inspect
import pickle
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jaxnorm as jn

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (8, 3)) * 2 + 5
BN = jn.BatchNorm(momentum=0.5)
PARAMS, STATE = BN.init(3)
equal = lambda got, want: chex.assert_trees_all_equal(got, want)


@pytest.fixture
def _files():
    """What jax.export writes with."""
    pytest.importorskip("flatbuffers")


files = pytest.mark.usefixtures("_files")


def seen(spec, x=X):
    """The state of a spec after data."""
    params, state = spec.init(3)
    return spec.apply(params, state, x, train=True)[1]


def accumulating(spec=BN, x=X):
    """In the middle of a batch."""
    params, state = spec.init(3)
    return spec.apply(params, jn.accumulate(state), x[:5], train=True)[1]


def linen_variables(spec=BN):
    module = jn.linen.Norm(spec)
    variables = module.init(KEY, X, train=False)
    variables = {**variables, "batch_stats": jn.accumulate(variables["batch_stats"])}
    return {**variables, **module.apply(variables, X[:5], train=True, mutable="batch_stats")[1]}


def train(spec):
    return lambda params, state, x: spec.apply(params, state, x, train=True)


def linen_step(variables, x):
    y, updates = jn.linen.Norm(BN).apply(variables, x, train=True, mutable="batch_stats")
    return y, {**variables, **updates}


RHO = jn.BatchInstanceNorm(momentum=0.5)
IMAGES = jnp.stack([X, X**2, 1 - X], 1)
# A program, its arguments, and the names of the pytrees in them.
PROGRAMS = {
    "Affine": lambda: (lambda p, x: (jn.layer_norm(x, *p), p), (jn.Affine(X[0], X[1]), X), ["Affine"]),
    "half an Affine": lambda: (lambda p, x: (jn.rms_norm(x, *p), p), (jn.Affine(X[0]), X), ["Affine"]),
    "BatchNorm": lambda: (train(BN), (PARAMS, seen(BN), X), ["Affine", "RunningStats"]),
    "debiased": lambda: (
        train(jn.BatchNorm(debias=True)), (PARAMS, seen(jn.BatchNorm(debias=True)), X), ["Affine", "RunningStats"]
    ),
    "GatedAffine": lambda: (train(RHO), (*RHO.init(3), IMAGES), ["GatedAffine", "RunningStats"]),
    "Moments": lambda: (lambda m, x: jn.merge(m, jn.moments(x, 0)), (jn.moments(X, 0), 3 * X), ["Moments"]),
    "no Moments": lambda: (lambda m, x: jn.merge(m, jn.moments(x, 0)), (jn.Moments.zeros(3), X), ["Moments"]),
    "Accumulating": lambda: (train(BN), (PARAMS, accumulating(), X[5:]), ["Affine", "Accumulating", "RunningStats"]),
    "accumulate": lambda: (lambda s: [jn.accumulate(s), jn.accumulate(s, False)], (seen(BN),), ["Accumulating"]),
    "commit": lambda: (lambda s: jn.commit(s), (accumulating(),), ["Accumulating", "RunningStats"]),
    "FeatureScaler": lambda: (train(jn.FeatureScaler()), (None, seen(jn.FeatureScaler()), 3 * X), []),
    "extremes": lambda: (
        train(jn.FeatureScaler(kind="minmax")), (None, seen(jn.FeatureScaler(kind="minmax")), 3 * X), []
    ),
    "linen": lambda: (linen_step, (linen_variables(), X[5:]), ["RunningStats"]),
    "a dict of them": lambda: (
        lambda tree: jax.tree.map(lambda v: 2 * v, tree),
        ({"a": PARAMS, "b": [seen(BN), (jn.moments(X, 0), None)], "c": accumulating()},),
        ["Affine", "RunningStats", "Moments", "Accumulating"],
    ),
}  # fmt: skip


@files
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_serialize_and_load_again(name):
    """With the same pytrees and values; what is written names them as users do, wherever their code lies."""
    program, args, names = PROGRAMS[name]()
    program = jax.jit(program)
    exported = export.export(program)(*args)
    blob = exported.serialize()
    loaded = export.deserialize(blob)
    assert (loaded.in_tree, loaded.out_tree) == (exported.in_tree, exported.out_tree)
    want, got = program(*args), loaded.call(*args)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    equal(got, want)
    assert len(jax.tree.leaves(got)) > 0
    for pytree in names:
        assert f"jaxnorm.{pytree}".encode() in blob


@files
def test_a_state_made_by_a_program_goes_into_the_next():
    """Types come back as they were: a loaded step is a step."""
    step = export.deserialize(export.export(jax.jit(train(BN)))(PARAMS, jn.accumulate(STATE), X).serialize())
    state = want = jn.accumulate(STATE)
    for x in (X, 3 * X, X - 7):
        (_, state), (_, want) = step.call(PARAMS, state, x), jax.jit(train(BN))(PARAMS, want, x)
    assert type(state) is type(want)
    assert type(jn.commit(state)) is jn.RunningStats
    equal(state, want)
    whole = np.concatenate([X, 3 * X, X - 7]).astype(float)
    np.testing.assert_allclose(jn.commit(state).mean, 0.5 * whole.mean(0), rtol=1e-5)
    np.testing.assert_allclose(jn.commit(state).var, 0.5 + 0.5 * whole.var(0), rtol=1e-5)


@files
def test_gradients_of_loaded_programs():
    """Serialized with their derivative: gradients have the pytrees of arguments."""

    def loss(params, x):
        y, _ = BN.apply(params, STATE, x, train=True)
        return (y**3).sum()

    loaded = export.deserialize(export.export(jax.jit(loss))(PARAMS, X).serialize(vjp_order=1))
    got = jax.grad(loaded.call, (0, 1))(PARAMS, X)
    assert type(got[0]) is jn.Affine
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(jax.grad(loss, (0, 1))(PARAMS, X)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


@files
def test_batches_of_any_size():
    """A symbolic axis, and the state beside it."""
    sizes = export.symbolic_shape("n, 3", constraints=["n >= 2"])
    exported = export.export(jax.jit(train(BN)))(PARAMS, STATE, jax.ShapeDtypeStruct(sizes, jnp.float32))
    loaded = export.deserialize(exported.serialize())
    for n in (2, 8):
        y, state = loaded.call(PARAMS, STATE, X[:n])
        exact = np.asarray(X[:n], float)
        np.testing.assert_allclose(y, (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(state.mean, 0.5 * exact.mean(0), rtol=1e-5)


@files
@pytest.mark.once
def test_another_process_loads_them(tmp_path):
    """That knows jaxnorm alone: names are registered with its import, and the adapters are not needed."""
    names = ["Accumulating", "Moments", "GatedAffine", "extremes", "linen"]
    for name in names:
        program, args, _ = PROGRAMS[name]()
        (tmp_path / f"{name}.program").write_bytes(export.export(jax.jit(program))(*args).serialize())
        (tmp_path / f"{name}.arguments").write_bytes(pickle.dumps(jax.tree.map(np.asarray, args)))
        want = [np.asarray(v) for v in jax.tree.leaves(jax.jit(program)(*args))]
        (tmp_path / f"{name}.results").write_bytes(pickle.dumps(want))
    code = f"""
import pathlib, pickle, sys
import numpy as np
import jaxnorm, jax
from jax import export
for name in {names!r}:
    read = lambda kind: (pathlib.Path({str(tmp_path)!r}) / f"{{name}}.{{kind}}").read_bytes()
    got = export.deserialize(bytearray(read("program"))).call(*pickle.loads(read("arguments")))
    want = pickle.loads(read("results"))
    for a, b in zip(jax.tree.leaves(got), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
assert "flax" not in sys.modules
print("loaded", type(got[1]["batch_stats"]["before"]).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "loaded RunningStats"


def pytrees():
    """Of every public kind, those that are made by calls, too."""
    return {
        "Affine": jn.Affine(X[0], None),
        "GatedAffine": RHO.init(3)[0],
        "RunningStats": seen(BN),
        "RunningStats with weights": seen(jn.BatchNorm(debias=True)),
        "Moments": jn.moments(X, 0),
        "Moments.zeros": jn.Moments.zeros(3),
        "Accumulating": accumulating(),
        "scaler": seen(jn.FeatureScaler()),
        "scaler with extremes": seen(jn.FeatureScaler(kind="minmax")),
        "linen": linen_variables(),
    }


PYTREES = ["Affine", "GatedAffine", "RunningStats", "RunningStats with weights", "Moments", "Moments.zeros",
           "Accumulating", "scaler", "scaler with extremes", "linen"]  # fmt: skip


def types_in(tree):
    """The classes of this library among the nodes of a pytree."""
    found, nodes = set(), [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            nodes += node.values()
        elif isinstance(node, tuple | list):
            nodes += node
            found |= {type(node)} - {tuple, list}
    return found


@pytest.mark.parametrize("name", PYTREES)
def test_their_module_is_jaxnorm(name):
    """Rooms of the house can move, and old pickles load: the class is what its name in jaxnorm says."""
    found = types_in(pytrees()[name])
    assert found
    for cls in found:
        assert cls.__module__ == "jaxnorm", cls
        assert getattr(jn, cls.__qualname__) is cls


def test_the_module_of_every_public_class_is_jaxnorm():
    """Specs are pytrees, too."""
    classes = [cls for name in jn.__all__ if inspect.isclass(cls := getattr(jn, name))]
    assert {jn.Affine, jn.BatchNorm, jn.FeatureScaler, jn.Moments, jn.RunningStats} <= set(classes)
    assert [cls.__name__ for cls in classes if cls.__module__ != "jaxnorm"] == []


@pytest.mark.parametrize("name", PYTREES)
def test_pickles_and_copies(name):
    tree = pytrees()[name]
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        blob = pickle.dumps(tree, protocol)
        # No room is named in a pickle.
        assert b"jaxnorm" in blob
        assert b"jaxnorm._" not in blob
        same = pickle.loads(blob)
        assert jax.tree.structure(same) == jax.tree.structure(tree)
        equal(same, tree)
    for same in (copy.deepcopy(tree), copy.copy(tree)):
        assert jax.tree.structure(same) == jax.tree.structure(tree)
        equal(same, tree)


@pytest.mark.parametrize(
    "spec",
    [jn.BatchNorm(momentum=0.5), jn.GroupNorm(groups=3), jn.LayerNorm(axis=(-1,)), jn.FeatureScaler(kind="minmax")],
    ids=lambda spec: type(spec).__name__,
)
def test_pickles_of_specs(spec):
    blob = pickle.dumps(spec)
    assert b"jaxnorm._" not in blob
    same = pickle.loads(blob)
    assert type(same) is type(spec)
    assert same == spec
    assert jax.tree.structure(same) == jax.tree.structure(spec)


def test_a_pickle_of_numpy_values_goes_on():
    """What was trained elsewhere, without JAX's arrays: the state is a state."""
    params, state = pickle.loads(pickle.dumps(jax.tree.map(np.asarray, (PARAMS, accumulating()))))
    _, got = jax.jit(train(BN))(params, state, X[5:])
    np.testing.assert_allclose(jn.commit(got).mean, 0.5 * np.asarray(X, float).mean(0), rtol=1e-5)

"""A plain subclass of a spec is a spec: a frozen pytree, whose numbers are leaves and whose structure is static."""

import copy
import dataclasses
import pickle
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import EVERY_SPEC
from flax import nnx

import jaxnorm as jn

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (8, 4)) * 2 + 3
PARAMS, STATE = jn.BatchNorm().init(4)
STATE = STATE._replace(mean=jnp.array([1.0, 2.0, 3.0, 4.0]), var=jnp.array([1.0, 4.0, 9.0, 16.0]))


class Frozen(jn.BatchNorm):
    """Batch norm by running statistics, whoever asks."""

    def apply(self, params, state, x, *, train, where=None):
        return super().apply(params, state, x, train=False, where=where)


class Mixed(jn.BatchNorm):
    """New fields of both kinds: y = gain · share · batch norm + (1 − share) · x, gain static, share a leaf."""

    gain: int = 2
    share: Any = jn.leaf(default=0.25)
    names: tuple[str, ...] = ("a", "b")

    def apply(self, params, state, x, *, train, where=None):
        y, state = super().apply(params, state, x, train=train, where=where)
        return self.gain * self.share * y + (1 - self.share) * x, state


class Quick(jn.BatchNorm):
    """Fields declared again, with other defaults."""

    momentum: Any = 0.5
    epsilon: float = 1e-2
    ddof: int = 1


class Quicker(Quick):
    momentum: Any = 0.25


class Deep(Mixed):
    """A level below, with one more of each kind."""

    power: Any = jn.leaf(default=1.0)
    flip: bool = False

    def apply(self, params, state, x, *, train, where=None):
        y, state = super().apply(params, state, x, train=train, where=where)
        return (-y if self.flip else y) * self.power, state


class ZeroInit(jn.LayerNorm):
    """As the last norm of a residual block."""

    def init(self, *args, **kwargs):
        params, state = super().init(*args, **kwargs)
        return params._replace(scale=jnp.zeros_like(params.scale)), state


def batch_norm(x, epsilon=1e-5, ddof=0):
    """In float64: y, mean, variance."""
    x = np.asarray(x, float)
    return (x - x.mean(0)) / np.sqrt(x.var(0) + epsilon), x.mean(0), x.var(0, ddof=ddof)


def mixed(x, gain=2, share=0.25):
    return gain * share * batch_norm(x)[0] + (1 - share) * np.asarray(x, float)


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


run = jax.jit(lambda spec, state, x: spec.apply(PARAMS, state, x, train=True))


def test_a_subclass_runs_under_jit_as_an_argument():
    y, state = run(Frozen(), STATE, X)
    close(y, (np.asarray(X, float) - [1, 2, 3, 4]) / np.sqrt(np.array([1, 4, 9, 16]) + 1e-5))
    chex.assert_trees_all_equal(state, STATE)
    y, state = run(Mixed(), STATE, X)
    close(y, mixed(X))
    close(state.mean, 0.99 * np.asarray(STATE.mean) + 0.01 * batch_norm(X)[1])
    close(run(Mixed(gain=3, share=0.5), STATE, X)[0], mixed(X, 3, 0.5))
    close(run(Deep(power=2.0, flip=True, gain=1), STATE, X)[0], -2 * mixed(X, 1))


def test_eager_and_compiled_agree():
    for spec in (Frozen(), Mixed(), Quick(), Quicker(), Deep()):
        for train in (True, False):
            of = lambda spec, x, train=train: spec.apply(PARAMS, STATE, x, train=train)
            jax.tree.map(close, jax.jit(of)(spec, X), of(spec, X))


def test_new_leaves_are_mapped():
    shares = jnp.array([0.0, 0.5, 1.0])
    ys = jax.vmap(lambda share: Mixed(share=share).apply(PARAMS, STATE, X, train=True)[0])(shares)
    close(ys, [mixed(X, share=s) for s in (0, 0.5, 1)])
    # Or as a spec of stacked leaves: all of them are.
    grid = Deep(share=shares, power=jnp.ones(3), epsilon=jnp.full(3, 1e-5), momentum=jnp.array([0.0, 0.5, 1.0]))
    ys, states = jax.vmap(lambda spec: spec.apply(PARAMS, STATE, X, train=True))(grid)
    close(ys, [mixed(X, share=s) for s in (0, 0.5, 1)])
    mean = np.asarray(STATE.mean, float)
    close(states.mean, [m * mean + (1 - m) * batch_norm(X)[1] for m in (0, 0.5, 1)])


def test_new_leaves_are_differentiated():
    """With the structure of the spec: zero for what does not matter."""
    grads = jax.grad(lambda spec: (spec.apply(PARAMS, STATE, X, train=True)[0] ** 2).sum() / 2)(Mixed(share=0.25))
    y, x = batch_norm(X)[0], np.asarray(X, float)
    assert type(grads) is Mixed
    assert (grads.gain, grads.names, grads.momentum) == (2, ("a", "b"), 0)
    np.testing.assert_allclose(grads.share, ((2 * y - x) * mixed(X)).sum(), rtol=1e-4)
    through = jax.grad(lambda spec: spec.apply(PARAMS, STATE, X, train=True)[1].mean.sum())(Quick())
    np.testing.assert_allclose(through.momentum, np.sum(np.asarray(STATE.mean, float) - batch_norm(X)[1]), rtol=1e-4)


def test_new_annotated_fields_are_static():
    assert len(jax.tree.leaves(Mixed())) == len(jax.tree.leaves(jn.BatchNorm())) + 1
    assert len(jax.tree.leaves(Deep())) == len(jax.tree.leaves(jn.BatchNorm())) + 2
    names = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(Deep())}
    assert names == {".momentum", ".epsilon", ".share", ".power"}
    assert jax.tree.structure(Mixed()) == jax.tree.structure(Mixed(share=0.75, momentum=0.5))
    assert jax.tree.structure(Mixed()) != jax.tree.structure(Mixed(gain=3))
    assert jax.tree.structure(Deep()) != jax.tree.structure(Deep(flip=True))
    assert jax.tree.structure(Frozen()) != jax.tree.structure(jn.BatchNorm())


def test_a_program_is_traced_once_for_all_leaves_and_again_for_another_structure():
    traced = []

    @jax.jit
    def norm(spec, x):
        traced.append((spec.gain, spec.names))
        return spec.apply(PARAMS, STATE, x, train=True)[0]

    for spec in (Mixed(), Mixed(share=0.5), Mixed(gain=3), Mixed(gain=3, epsilon=1e-3), Mixed(names=["c"])):
        close(norm(spec, X)[0, 0], spec.apply(PARAMS, STATE, X, train=True)[0][0, 0])
    assert traced == [(2, ("a", "b")), (3, ("a", "b")), (2, ("c",))]


def test_what_is_static_is_canonical_and_specs_compare():
    assert Mixed(names=["a", "b"]) == Mixed()
    assert Mixed(gain=np.int64(2)) == Mixed()
    assert type(Mixed(gain=np.int64(2)).gain) is int
    assert hash(Mixed(names=["a", "b"])) == hash(Mixed())
    assert Mixed(share=0.5) != Mixed()
    assert Mixed(gain=3) != Mixed()
    assert Frozen() != jn.BatchNorm()
    assert Deep() != Mixed()
    with pytest.raises(TypeError, match="Pass the spec to the transformed"):
        jax.jit(lambda share: hash(Mixed(share=share)))(0.5)


def test_a_field_declared_again_keeps_its_kind():
    """Numbers stay leaves, and structure static, on every level."""
    for spec, momentum in ((Quick(), 0.5), (Quicker(), 0.25)):
        leaves = {jax.tree_util.keystr(path): v for path, v in jax.tree_util.tree_leaves_with_path(spec)}
        assert leaves == {".momentum": momentum, ".epsilon": 1e-2}
        y, state = run(spec, STATE, X)
        want, mean, var = batch_norm(X, 1e-2, ddof=1)
        close(y, want)
        close(state.mean, momentum * np.asarray(STATE.mean) + (1 - momentum) * mean)
        close(state.var, momentum * np.asarray(STATE.var) + (1 - momentum) * var)
    assert jax.tree.structure(Quick(ddof=0)) != jax.tree.structure(Quick())
    assert Quick(momentum=0.75).momentum == 0.75

    class Shy(Mixed):
        share: float = 0.75
        gain: int = 5

    assert jax.tree.leaves(Shy(momentum=0.5, epsilon=0.125)).count(0.75) == 1
    assert 5 not in jax.tree.leaves(Shy())
    close(Shy().apply(PARAMS, STATE, X, train=True)[0], mixed(X, 5, 0.75))


@pytest.mark.parametrize(
    ("base", "override", "name"),
    [
        (jn.BatchNorm, {"momentum": 0.5}, "momentum"),
        (jn.BatchNorm, {"ddof": 1}, "ddof"),
        (jn.BatchNorm, {"use_scale": False}, "use_scale"),
        (jn.LayerNorm, {"axis": (1, 2)}, "axis"),
        (jn.GroupNorm, {"groups": 4}, "groups"),
        (jn.FeatureScaler, {"kind": "minmax"}, "kind"),
        (Mixed, {"share": 1.0}, "share"),
        (Mixed, {"gain": 1}, "gain"),
        (Quicker, {"momentum": 0.0}, "momentum"),
        (Deep, {"epsilon": 0.0}, "epsilon"),
        (Deep, {"names": ()}, "names"),
        (jn.BatchNorm, {"momentum": property(lambda self: 0.5)}, "momentum"),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else None,
)
def test_an_override_without_annotation_is_an_error(base, override, name):
    """A dataclass would ignore it: the constructor sets what the base declares. The class is not made at all."""
    with pytest.raises(TypeError, match=name):
        type("Bad", (base,), override)


def test_methods_properties_and_class_variables_are_no_fields():
    class Rich(jn.BatchNorm):
        levels: ClassVar[int] = 3
        table: ClassVar[dict[str, int]] = {"a": 1}
        quoted: "ClassVar[int]" = 4
        times: "int" = 2

        @property
        def double(self):
            return 2 * self.epsilon

        @staticmethod
        def of(n):
            return n + 1

        @classmethod
        def twice(cls):
            return cls(times=2 * cls.levels)

        def describe(self):
            return f"{self.times} of {self.levels + self.quoted}"

    names = {f.name for f in dataclasses.fields(Rich)} - {f.name for f in dataclasses.fields(jn.BatchNorm)}
    assert names == {"times"}
    spec = jax.jit(lambda spec: spec)(Rich.twice())
    assert (spec.times, spec.levels, spec.describe(), Rich.of(1)) == (6, 3, "6 of 7", 2)
    np.testing.assert_allclose(spec.double, 2e-5, rtol=1e-6)
    close(run(Rich(), STATE, X)[0], batch_norm(X)[0])


def test_it_is_frozen_and_takes_keywords_alone():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Mixed().gain = 3
    with pytest.raises(TypeError, match="positional"):
        Mixed(3)
    with pytest.raises(TypeError, match="missing"):
        type("Needs", (jn.LayerNorm,), {"__annotations__": {"width": int}})()
    changed = dataclasses.replace(Deep(gain=3), power=4.0)
    assert (type(changed), changed.gain, changed.power, changed.share) == (Deep, 3, 4.0, 0.25)


def test_levels_are_instances_of_those_above():
    assert isinstance(Deep(), Mixed)
    assert isinstance(Deep(), jn.BatchNorm)
    assert isinstance(Deep(), jn.Spec)
    again = jax.tree.unflatten(jax.tree.structure(Deep(flip=True)), jax.tree.leaves(Deep(power=3.0)))
    assert (type(again), again.flip, again.power, again.gain, again.names) == (Deep, True, 3.0, 2, ("a", "b"))


def test_a_check_of_its_own_beside_those_of_specs():
    class Careful(jn.BatchNorm):
        strength: int = 1
        parts: tuple[int, ...] = ()

        def __post_init__(self):
            super().__post_init__()
            if self.strength < 0:
                raise ValueError("strength is negative")

    assert Careful(parts=[1, 2]).parts == (1, 2)
    with pytest.raises(ValueError, match="strength is negative"):
        Careful(strength=-1)
    # JAX unflattens with placeholders, past the constructor.
    assert jax.tree.map(lambda v: object(), Careful()).strength == 1


@pytest.mark.parametrize("spec", [*EVERY_SPEC, jn.FeatureScaler()], ids=lambda spec: type(spec).__name__)
def test_every_spec_has_subclasses(spec):
    """With a new field of each kind they do what it does: verbs are not told of them."""

    class Sub(type(spec)):
        note: str = "here"
        weight: Any = jn.leaf(default=3.0)

    fields = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
    sub = Sub(**fields)
    assert len(jax.tree.leaves(sub)) == len(jax.tree.leaves(spec)) + 1
    x = jnp.stack([X, X**2, 1 - X], 1)
    params, state = sub.init(4)
    chex.assert_trees_all_equal((params, state), spec.init(4))
    of = jax.jit(lambda spec, x: spec.apply(params, state, x, train=True))
    chex.assert_trees_all_equal(of(sub, x), of(spec, x))
    np.testing.assert_allclose(jax.jit(lambda s: s.weight * 2)(sub), 6)
    assert sub.features(x.shape) == spec.features(x.shape)


@pytest.mark.parametrize("train", [True, False])
def test_a_frozen_norm_in_linen_needs_no_mutable_collection(train):
    module = jn.linen.Norm(Frozen())
    variables = module.init(KEY, X, train=True)
    assert variables["batch_stats"].keys() == {"mean", "var"}
    variables = {**variables, "batch_stats": {"mean": STATE.mean, "var": STATE.var}}
    want = (np.asarray(X, float) - [1, 2, 3, 4]) / np.sqrt(np.array([1, 4, 9, 16]) + 1e-5)
    close(module.apply(variables, X, train=train), want)
    close(jax.jit(lambda v, x: module.apply(v, x, train=train))(variables, X), want)


def test_subclasses_in_linen():
    def apply(spec, variables, x):
        return jn.linen.Norm(spec, train=True).apply(variables, x, mutable="batch_stats")

    variables = jn.linen.Norm(Deep()).init(KEY, X, train=False)
    y, updates = jax.jit(apply)(Deep(power=2.0, momentum=0.5), variables, X)
    close(y, 2 * mixed(X))
    close(updates["batch_stats"]["mean"], 0.5 * batch_norm(X)[1])
    shares = jnp.array([0.0, 1.0])
    ys, _ = jax.vmap(lambda share: apply(Mixed(share=share), variables, X))(shares)
    close(ys, [mixed(X, share=0), mixed(X, share=1)])
    slope = jax.grad(lambda share: apply(Mixed(share=share), variables, X)[0].sum())(0.25)
    np.testing.assert_allclose(slope, (2 * batch_norm(X)[0] - np.asarray(X, float)).sum(), rtol=1e-4)


def test_subclasses_in_nnx():
    norm = jn.nnx.Norm(Frozen(), 4)
    norm.mean[...], norm.var[...] = STATE.mean, STATE.var
    want = (np.asarray(X, float) - [1, 2, 3, 4]) / np.sqrt(np.array([1, 4, 9, 16]) + 1e-5)
    for call in (norm, lambda x: nnx.jit(lambda norm, x: norm(x))(norm, x)):
        close(call(X), want)
        np.testing.assert_array_equal(norm.mean[...], STATE.mean)
        np.testing.assert_array_equal(norm.var[...], STATE.var)
    norm = jn.nnx.Norm(Deep(share=jnp.float32(0.5), momentum=0.5), 4)
    assert nnx.to_pure_dict(nnx.state(norm))["spec"].keys() == {"share"}
    close(nnx.jit(lambda norm, x: norm(x))(norm, X), mixed(X, share=0.5))
    close(norm.mean[...], 0.5 * batch_norm(X)[1])
    graph, state = nnx.split(norm)
    slope = jax.grad(lambda state: nnx.merge(graph, state, copy=True)(X).sum(), allow_int=True)(state)
    slope = nnx.to_pure_dict(slope)["spec"]["share"]
    np.testing.assert_allclose(slope, (2 * batch_norm(X)[0] - np.asarray(X, float)).sum(), rtol=1e-4)


def test_initialisers_of_a_subclass_count_in_both_layers():
    x = X[:, None]
    np.testing.assert_array_equal(ZeroInit().init(4)[0].scale, 0)
    params = jn.linen.Norm(ZeroInit()).init(KEY, x, train=True)["params"]
    np.testing.assert_array_equal(params["scale"], 0)
    np.testing.assert_array_equal(params["bias"], 0)
    np.testing.assert_array_equal(jn.nnx.Norm(ZeroInit(), 4)(x), 0)
    one = jax.nn.initializers.ones
    np.testing.assert_array_equal(
        jn.linen.Norm(ZeroInit(), scale_init=one).init(KEY, x, train=True)["params"]["scale"], 1
    )


def test_their_states_accumulate_and_recalibrate():
    spec = Mixed(momentum=0.5)
    state = jn.accumulate(spec.init(4)[1])
    for part in (X[:3], X[3:]):
        _, state = spec.apply(PARAMS, state, part, train=True)
    close(jn.commit(state).mean, 0.5 * batch_norm(X)[1])
    step = lambda state, x: spec.apply(PARAMS, state, x, train=False)[1]
    found = jn.recalibrate(step, spec.init(4)[1], [X[:3], X[3:]])
    close(found.mean, batch_norm(X)[1])
    close(found.var, batch_norm(X)[2])
    variables = jn.linen.Norm(spec).init(KEY, X, train=False)
    close(jn.linen.recalibrate(jn.linen.Norm(spec), variables, [X[:3], X[3:]])["batch_stats"]["var"], batch_norm(X)[2])


def test_errors_name_the_subclass():
    with pytest.raises(ValueError, match=r"Mixed\(.*initialised for 4 features"):
        Mixed().apply(PARAMS, STATE, X[:, :3], train=True)
    with pytest.raises(TypeError, match="Mixed"):
        Mixed().apply(PARAMS, STATE, X, train=jnp.array(True))


@pytest.mark.parametrize(
    "spec", [Frozen(), Mixed(gain=3, share=0.5), Quicker(), Deep(flip=True)], ids=lambda s: type(s).__name__
)
def test_copies_and_pickles(spec):
    for same in (pickle.loads(pickle.dumps(spec)), copy.copy(spec), copy.deepcopy(spec)):
        assert type(same) is type(spec)
        assert same == spec
        np.testing.assert_array_equal(run(same, STATE, X)[0], run(spec, STATE, X)[0])

"""What is said of a mistake: it names the function, the argument as it was written, and what to write instead.

And what looked like a mistake to the library alone, and works.
"""

import re
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

import jaxnorm as jn
from jaxnorm import __main__

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (4, 5, 8))
ROWS = jax.random.normal(KEY, (16, 8)) * 2 + 3
BN = jn.BatchNorm()
STATE = BN.init(8)[1]

VERBS = {
    "batch_norm": partial(jn.batch_norm, X, STATE, train=True),
    "instance_norm": partial(jn.instance_norm, X),
    "layer_norm": partial(jn.layer_norm, X),
    "rms_norm": partial(jn.rms_norm, X),
    "group_norm": partial(jn.group_norm, X, groups=2),
}
SPECS = {
    "BatchNorm": jn.BatchNorm,
    "InstanceNorm": jn.InstanceNorm,
    "LayerNorm": jn.LayerNorm,
    "RMSNorm": jn.RMSNorm,
    "GroupNorm": partial(jn.GroupNorm, groups=2),
}
NAMES = list(SPECS)


def says(call, *words, error=(TypeError, ValueError), never=()):
    """It raises, and says all of these."""
    with pytest.raises(error) as caught:
        call()
    said = str(caught.value) + "".join(f"\n{note}" for note in getattr(caught.value, "__notes__", ()))
    for word in words:
        assert re.search(word, said, re.DOTALL), f"{word!r} is not in {said!r}"
    for word in never:
        assert not re.search(word, said), f"{word!r} is in {said!r}"


def apply(spec, x=X):
    return spec.apply(*spec.init(x.shape[-1]), x, train=True)


def drop_in(library, name, features=8, **arguments):
    """A drop-in as a function of data and mask, in training."""
    arguments |= {"num_groups": 2} if name == "GroupNorm" else {}
    if library == "nnx":
        return getattr(jn.nnx, name)(features, **arguments, rngs=nnx.Rngs(0))
    arguments |= {"use_running_average": False} if name == "BatchNorm" else {}
    module = getattr(jn.linen, name)(**arguments)
    return lambda x, **kwargs: module.init_with_output(KEY, x, **kwargs)[0]


libraries = pytest.mark.parametrize("library", ["linen", "nnx"])
each_name = pytest.mark.parametrize("name", NAMES)

# Numbers


@pytest.mark.parametrize("value", [None, "1e-5"], ids=repr)
@pytest.mark.parametrize("verb", VERBS)
def test_an_epsilon_that_is_no_number(verb, value):
    """None is PyTorch's default for RMS norm, and "1e-5" what YAML makes of 1e-5."""
    says(lambda: VERBS[verb](epsilon=value), verb, "epsilon", re.escape(repr(value)))


@pytest.mark.parametrize("value", [None, "1e-5"], ids=repr)
@each_name
def test_an_epsilon_of_a_spec_that_is_no_number(name, value):
    says(lambda: apply(SPECS[name](epsilon=value)), "(?i)" + name.replace("Norm", "_?norm"), "epsilon")


@libraries
@pytest.mark.parametrize("value", [None, "1e-5"], ids=repr)
@each_name
def test_an_epsilon_of_a_drop_in_that_is_no_number(name, value, library):
    says(lambda: drop_in(library, name, epsilon=value)(X), name, "epsilon")


def test_a_momentum_that_is_no_number():
    says(lambda: VERBS["batch_norm"](momentum="0.9"), "batch_norm", "momentum", "0.9")


# Axes


@pytest.mark.parametrize(
    "axes", [np.array([1, 2]), {1, 2}, frozenset({2, 1}), [1, 2], range(1, 3), np.array([-1, 1])], ids=repr
)
def test_axes_are_sequences_sets_or_arrays_of_ints(axes):
    for norm in (jn.layer_norm, jn.rms_norm):
        np.testing.assert_array_equal(norm(X, axis=axes), norm(X, axis=(1, 2)))
    for found, want in zip(jn.moments(X, axes)[:3], jn.moments(X, (1, 2))[:3], strict=True):
        np.testing.assert_array_equal(found, want)
    for spec in (jn.LayerNorm, jn.RMSNorm):
        norm, tuples = spec(axis=axes, use_scale=False), spec(axis=(1, 2), use_scale=False)
        assert hash(norm) is not None
        assert norm == spec(axis=axes, use_scale=False)
        params, _ = norm.init(norm.features(X.shape))
        got = jax.jit(lambda spec, p, x: spec.apply(p, None, x, train=True)[0])(norm, params, X)
        np.testing.assert_array_equal(got, tuples.apply(tuples.init((5, 8))[0], None, X, train=True)[0])


@pytest.mark.parametrize("axes", [np.array([0, 1]), {0, 1}], ids=repr)
def test_batch_axes_are_sequences_sets_or_arrays_of_ints(axes):
    x = X.reshape(2, 2, 5, 8)
    for norm in (jn.instance_norm, partial(jn.group_norm, groups=2)):
        np.testing.assert_array_equal(norm(x, batch_axis=axes), norm(x, batch_axis=(0, 1)))


@pytest.mark.parametrize("axes", [np.array([1.0, 2.0]), {"a"}, np.array([True, False])], ids=repr)
def test_axes_of_anything_else(axes):
    says(lambda: jn.layer_norm(X, axis=axes), "layer_norm", "axis")


@pytest.mark.parametrize("spec", ["BatchNorm", "InstanceNorm", "GroupNorm"])
def test_several_channel_axes(spec):
    says(lambda: SPECS[spec](channel_axis=(1, 2)).init((3, 4)), spec, "channel_axis", r"\(1, 2\)")


# Masks


@libraries
@each_name
def test_a_mask_of_a_drop_in_is_called_mask(name, library):
    norm = drop_in(library, name)
    never = (r"\bwhere has\b", r"\bwhere needs\b", r"where\[", r"\bwhere holds\b", r": where\b")
    for shape in ((4, 5, 7), (3,), (4, 5), (1, 4, 5, 8)):
        says(lambda shape=shape: norm(X, mask=np.ones(shape, bool)), name, r"\bmask\b", never=never)
    says(lambda: norm(X, mask=-np.ones(X.shape, np.float32)), name, r"\bmask\b", "-1", never=never)
    says(lambda: norm(X, mask=np.ones(X.shape, np.complex64)), name, r"\bmask\b", "complex", never=never)


@pytest.mark.parametrize("verb", VERBS)
def test_lengths_in_the_place_of_a_mask(verb):
    """With None appended they would be weights, and the padding included."""
    says(
        lambda: VERBS[verb](where=jnp.array([3, 5, 1, 2])),
        verb,
        "where",
        r"arange\(.*\) *< *.*\[:, None\]",
        never=(r"where\[\.\.\., None, None\]",),
    )
    says(lambda: VERBS[verb](where=jnp.ones(4, bool)), r"where\[\.\.\., None, None\]", never=("arange",))


def test_what_is_advised_for_lengths_works():
    lengths = jnp.array([3, 5, 1, 2])
    with jax.numpy_rank_promotion("allow"):
        where = (jnp.arange(5) < lengths[:, None])[..., None]
    y = jn.instance_norm(X, where=where)
    np.testing.assert_allclose(y[0, :3], jn.instance_norm(X[:1, :3])[0], rtol=1e-5, atol=1e-5)


def test_weights_of_no_weight_for_an_unbiased_variance():
    """Normalised weights sum to 1: with ddof=1, the running variance would never move."""
    where = jnp.full((16, 1), 1 / 16)
    says(lambda: jn.batch_norm(ROWS, STATE, train=True, ddof=1, where=where), "batch_norm", "ddof")
    # One example alone has no unbiased variance, and that is no mistake.
    _, new = jn.batch_norm(ROWS, STATE, train=True, ddof=1, where=jnp.arange(16)[:, None] == 0)
    np.testing.assert_array_equal(new.var, STATE.var)
    _, new = jn.batch_norm(ROWS, STATE, train=True, ddof=0, momentum=0.0, where=where)
    np.testing.assert_allclose(new.var, np.asarray(ROWS, float).var(0), rtol=1e-5)


# Shapes


def test_an_instance_norm_without_positions():
    """(N, C) has none: each number would be its own mean, and y the bias. Positions of size 1 may come to more."""
    says(lambda: jn.instance_norm(ROWS), "instance_norm", r"\(16, 8\)")
    says(lambda: apply(jn.InstanceNorm(), ROWS), "(?i)instance_?norm", r"\(16, 8\)")
    y = jn.instance_norm(ROWS[:, None, None], bias=2.0)
    np.testing.assert_array_equal(y, jnp.full((16, 1, 1, 8), 2.0))


@each_name
def test_features_of_a_module_of_nnx_without_parameters(name):
    norm = jn.nnx.Norm(SPECS[name](use_scale=False, use_bias=False), 64)
    says(lambda: norm(jnp.ones((4, 5, 32))), "64", "32", error=ValueError)
    assert norm(jax.random.normal(KEY, (4, 5, 64))).std() > 0.9


def test_ghosts_of_a_batch_of_symbolic_size():
    spec = jn.BatchNorm(virtual_batch_size=4, momentum=0.9)
    params, state = spec.init(3)
    run = jax.jit(lambda x: spec.apply(params, state, x, train=True))
    (batch,) = export.symbolic_shape("4*b")
    exported = export.export(run)(jax.ShapeDtypeStruct((batch, 2, 3), jnp.float32))
    for examples in (4, 12):
        x = jax.random.normal(KEY, (examples, 2, 3)) + jnp.arange(examples, dtype=jnp.float32)[:, None, None]
        (y, new), (want, state_then) = exported.call(x), run(x)
        np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(new.mean, state_then.mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(new.var, state_then.var, rtol=1e-5)
        alone = np.asarray(x, float).reshape(-1, 4, 2, 3)
        exact = (alone - alone.mean((1, 2), keepdims=True)) / np.sqrt(alone.var((1, 2), keepdims=True) + 1e-5)
        np.testing.assert_allclose(y, exact.reshape(y.shape), rtol=1e-4, atol=1e-5)


# Other people's words


@pytest.mark.parametrize("verb", VERBS)
def test_did_you_mean_epsilon_or_where_in_a_verb(verb):
    says(lambda: VERBS[verb](eps=1e-5), verb, "epsilon", error=TypeError)
    says(lambda: VERBS[verb](mask=X > 0), verb, r"\bwhere\b", error=TypeError)


@each_name
def test_did_you_mean_epsilon_or_where_in_a_spec(name):
    says(lambda: SPECS[name](eps=1e-5), name, "epsilon", error=TypeError)
    norm = SPECS[name]()
    says(lambda: norm.apply(*norm.init(8), X, train=True, mask=X > 0), r"\bwhere\b", error=TypeError)


def test_did_you_mean_groups():
    says(lambda: jn.group_norm(X, num_groups=2), "group_norm", r"(?<!num_)groups", error=TypeError)
    says(lambda: jn.GroupNorm(num_groups=2), "GroupNorm", r"(?<!num_)groups", error=TypeError)


def test_other_unknown_arguments_are_refused_as_ever():
    says(lambda: jn.layer_norm(X, nonsense=1), "nonsense", error=TypeError)
    says(lambda: jn.LayerNorm(nonsense=1), "nonsense", error=TypeError)


@pytest.mark.parametrize("theirs", [nn.BatchNorm(), nn.LayerNorm(), nn.GroupNorm(4)], ids=lambda m: type(m).__name__)
def test_a_module_of_flax_in_the_place_of_a_spec(theirs):
    """Both have `apply`; the message says which spec it should have been."""
    name = type(theirs).__name__
    says(lambda: jn.linen.Norm(theirs, train=True).init(KEY, X), r"linen\.Norm", "spec", rf"(jaxnorm|jn)\.{name}\(")
    module = getattr(nnx, name)(8, rngs=nnx.Rngs(0), **({"num_groups": 4} if name == "GroupNorm" else {}))
    says(lambda: jn.nnx.Norm(module, 8), r"nnx\.Norm", "spec", rf"(jaxnorm|jn)\.{name}\(")


def test_a_scaler_takes_the_state_first():
    scaler = jn.FeatureScaler()
    y, state = scaler.apply(*scaler.init(8), ROWS, train=True)
    says(lambda: scaler.inverse(y, state), "inverse", r"inverse\(state, \w+\)|swapped")
    np.testing.assert_allclose(scaler.inverse(state, y), ROWS, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("module", [jn.linen, jn.nnx], ids=["linen", "nnx"])
def test_adapters_show_no_internals(module):
    norms = {"BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "Norm", "RMSNorm", "recalibrate"}
    shown = {name for name in dir(module) if not name.startswith("_")}
    assert norms <= set(module.__all__)
    assert shown <= set(module.__all__)
    for name in module.__all__:
        assert not hasattr(getattr(module, name), "__path__"), name
        assert getattr(module, name).__module__.startswith("jaxnorm"), name


def test_the_demo_advises_what_can_be_installed(monkeypatch, capsys):
    """No index has the package: its extra comes from a checkout, or from the repository."""
    monkeypatch.setattr(__main__, "missing_packages", lambda: ["typer"])
    with pytest.raises(SystemExit):
        __main__.main()
    said = capsys.readouterr().err
    assert "typer" in said
    assert "[demo]" in said
    assert "'jaxnorm[demo]'" not in said


# Recalibration


class Net(nn.Module):
    """A network as public ones are, that asks in one way or another whether it trains."""

    @nn.compact
    def run(self, x, evaluating):
        x = nn.Dense(8)(x)
        x = jn.linen.BatchNorm(use_running_average=evaluating)(x)
        return nn.Dropout(0.5, deterministic=evaluating)(x)


class NetTrain(Net):
    def __call__(self, x, train):
        return self.run(x, not train)


class NetTraining(Net):
    def __call__(self, x, *, training):
        return self.run(x, not training)


class NetIsTraining(Net):
    def __call__(self, x, is_training):
        return self.run(x, not is_training)


class NetDeterministic(Net):
    def __call__(self, x, *, deterministic):
        return self.run(x, deterministic)


FLAGS = {NetTrain: "train", NetTraining: "training", NetIsTraining: "is_training", NetDeterministic: "deterministic"}


@pytest.mark.parametrize("net", FLAGS, ids=FLAGS.values())
def test_recalibration_knows_how_models_of_linen_are_told_to_evaluate(net):
    """Dropout would need a random key, and is off."""
    flag, model = FLAGS[net], net()
    variables = model.init(KEY, ROWS, **{flag: flag == "deterministic"})
    stats = jn.linen.recalibrate(model, variables, [ROWS[:3], ROWS[3:]])["batch_stats"]["BatchNorm_0"]
    kernel = variables["params"]["Dense_0"]["kernel"]
    exact = np.asarray(ROWS, float) @ np.asarray(kernel, float)
    np.testing.assert_allclose(stats["mean"], exact.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats["var"], exact.var(0), rtol=1e-4)


class NnxNet(nnx.Module):
    def __init__(self):
        self.norm = jn.nnx.BatchNorm(8, rngs=nnx.Rngs(0))

    def run(self, x, evaluating):
        assert evaluating is True
        return self.norm(x)


class NnxTrain(NnxNet):
    def __call__(self, x, *, train):
        return self.run(x, not train)


class NnxTraining(NnxNet):
    def __call__(self, x, training):
        return self.run(x, not training)


class NnxIsTraining(NnxNet):
    def __call__(self, x, *, is_training):
        return self.run(x, not is_training)


class NnxDeterministic(NnxNet):
    def __call__(self, x, deterministic):
        return self.run(x, deterministic)


@pytest.mark.parametrize("net", [NnxTrain, NnxTraining, NnxIsTraining, NnxDeterministic])
def test_recalibration_knows_how_models_of_nnx_are_told_to_evaluate(net):
    model = net()
    jn.nnx.recalibrate(model, [ROWS[:3], ROWS[3:]])
    np.testing.assert_allclose(model.norm.mean[...], np.asarray(ROWS, float).mean(0), rtol=1e-5)
    np.testing.assert_allclose(model.norm.var[...], np.asarray(ROWS, float).var(0), rtol=1e-5)


class Tempered(Net):
    def __call__(self, x, temperature):
        return self.run(x / temperature, True)


class NnxTempered(NnxNet):
    def __call__(self, x, temperature):
        return self.run(x / temperature, True)


def test_an_argument_that_the_model_requires_is_asked_for_by_its_name():
    model, halved = Tempered(), ROWS / 2
    variables = model.init(KEY, ROWS, 2.0)
    says(lambda: jn.linen.recalibrate(model, variables, [ROWS]), "recalibrate", "temperature=")
    stats = jn.linen.recalibrate(model, variables, [ROWS], temperature=2.0)["batch_stats"]["BatchNorm_0"]
    exact = np.asarray(halved, float) @ np.asarray(variables["params"]["Dense_0"]["kernel"], float)
    np.testing.assert_allclose(stats["mean"], exact.mean(0), rtol=1e-4, atol=1e-5)
    model = NnxTempered()
    says(lambda: jn.nnx.recalibrate(model, [ROWS]), "recalibrate", "temperature=")
    jn.nnx.recalibrate(model, [ROWS], temperature=2.0)
    np.testing.assert_allclose(model.norm.mean[...], np.asarray(halved, float).mean(0), rtol=1e-5)


MASK = jnp.arange(16)[:, None] < 10


def norms_of_linen():
    """A drop-in, and a spec as a module, whose second argument by position is a flag."""
    model = jn.linen.BatchNorm()
    yield model, model.init(KEY, ROWS, use_running_average=True), "mask"
    model = jn.linen.Norm(BN)
    yield model, model.init(KEY, ROWS, train=False), "where"


def norms_of_nnx():
    yield jn.nnx.BatchNorm(8, rngs=nnx.Rngs(0)), "mask"
    yield jn.nnx.Norm(BN, 8), "where"


def test_a_mask_by_position_is_no_flag():
    """It landed in `use_running_average`, and was ignored without a word: the mapping form names it."""
    masked = np.asarray(ROWS, float)[:10]
    for model, variables, name in norms_of_linen():
        says(lambda m=model, v=variables: jn.linen.recalibrate(m, v, [(ROWS, MASK)]), r"[\"']?x[\"']?:|dict\(|mapping")
        stats = jn.linen.recalibrate(model, variables, [{"x": ROWS, name: MASK}])["batch_stats"]
        np.testing.assert_allclose(stats["mean"], masked.mean(0), rtol=1e-5)
        np.testing.assert_allclose(stats["var"], masked.var(0), rtol=1e-5)
    for model, name in norms_of_nnx():
        says(lambda m=model: jn.nnx.recalibrate(m, [(ROWS, MASK)]), r"[\"']?x[\"']?:|dict\(|mapping")
        np.testing.assert_array_equal(model.mean[...], 0)
        jn.nnx.recalibrate(model, [{"x": ROWS, name: MASK}])
        np.testing.assert_allclose(model.mean[...], masked.mean(0), rtol=1e-5)
        np.testing.assert_allclose(model.var[...], masked.var(0), rtol=1e-5)


def test_flags_are_checked_while_recalibrating():
    batches = [{"x": ROWS, "use_running_average": MASK}]
    model, variables, _ = next(norms_of_linen())
    says(lambda: jn.linen.recalibrate(model, variables, batches), "use_running_average")
    for norm, _ in norms_of_nnx():
        says(lambda norm=norm: jn.nnx.recalibrate(norm, batches), "use_running_average")
    # What is a flag passes, whatever it says.
    for flag in (True, False):
        stats = jn.linen.recalibrate(model, variables, [ROWS], use_running_average=flag)["batch_stats"]
        np.testing.assert_allclose(stats["mean"], np.asarray(ROWS, float).mean(0), rtol=1e-5)


class Plain(Net):
    def __call__(self, x):
        return self.run(x, True)


class KeywordOnly(Net):
    def __call__(self, x, *, train=False):
        return self.run(x, not train)


class NnxPlain(NnxNet):
    def __call__(self, x):
        return self.run(x, True)


LABELS = jnp.arange(16) % 3


@pytest.mark.parametrize("net", [NetTrain, Plain, KeywordOnly])
def test_batches_with_labels(net):
    """A loader of pairs: the label lands in `train`, or nowhere."""
    model = net()
    variables = model.init(KEY, ROWS, **({"train": False} if net is not Plain else {}))
    loader = [(ROWS[:8], LABELS[:8]), (ROWS[8:], LABELS[8:])]
    says(lambda: jn.linen.recalibrate(model, variables, loader), "recalibrate", r"x for x, _ in")
    stats = jn.linen.recalibrate(model, variables, (x for x, _ in loader))["batch_stats"]["BatchNorm_0"]
    exact = np.asarray(ROWS, float) @ np.asarray(variables["params"]["Dense_0"]["kernel"], float)
    np.testing.assert_allclose(stats["mean"], exact.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("net", [NnxPlain, NnxTrain, NnxTraining])
def test_batches_with_labels_for_nnx(net):
    model = net()
    loader = [(ROWS[:8], LABELS[:8]), (ROWS[8:], LABELS[8:])]
    says(lambda: jn.nnx.recalibrate(model, loader), "recalibrate", r"x for x, _ in")
    jn.nnx.recalibrate(model, (x for x, _ in loader))
    np.testing.assert_allclose(model.norm.mean[...], np.asarray(ROWS, float).mean(0), rtol=1e-5)


def test_one_array_is_no_list_of_batches():
    """Each row would be a batch, and give a norm one value per statistic: a variance of 0."""
    model = nnx.Sequential(nnx.Linear(8, 6, rngs=nnx.Rngs(0)), jn.nnx.BatchNorm(6, rngs=nnx.Rngs(0)))
    says(lambda: jn.nnx.recalibrate(model, ROWS), "recalibrate", r"\[x\]", error=ValueError)
    np.testing.assert_array_equal(model.layers[1].var[...], 1)
    net = Plain()
    variables = net.init(KEY, ROWS)
    says(lambda: jn.linen.recalibrate(net, variables, ROWS), "recalibrate", r"\[x\]", error=ValueError)
    params, state = BN.init(8)
    step = lambda state, x: BN.apply(params, state, x, train=False)[1]
    says(lambda: jn.recalibrate(step, state, ROWS), "recalibrate", r"\[x\]", error=ValueError)


def test_a_batch_of_one_beside_others_is_none_of_that():
    model = jn.nnx.BatchNorm(8, rngs=nnx.Rngs(0))
    jn.nnx.recalibrate(model, [ROWS[:1], ROWS[1:]])
    np.testing.assert_allclose(model.var[...], np.asarray(ROWS, float).var(0), rtol=1e-5)


# Norm as a module


SPELLINGS = [({"train": True}, {"train": False}), ({"use_running_average": False}, {"use_running_average": True})]


@pytest.mark.parametrize("where", ["constructor", "call"])
@pytest.mark.parametrize(("training", "evaluation"), SPELLINGS, ids=["train", "use_running_average"])
def test_both_spellings_of_training_work_in_linen(training, evaluation, where):
    def run(variables, told, **kwargs):
        norm = partial(jn.linen.Norm, jn.BatchNorm(momentum=0.9), **(told if where == "constructor" else {}))
        return norm().apply(variables, ROWS, **({} if where == "constructor" else told), **kwargs)

    variables = jn.linen.Norm(jn.BatchNorm(momentum=0.9)).init(KEY, ROWS, train=False)
    y, updates = run(variables, training, mutable="batch_stats")
    exact = np.asarray(ROWS, float)
    np.testing.assert_allclose(y, (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], 0.1 * exact.mean(0), rtol=1e-5)
    np.testing.assert_allclose(run(variables, evaluation), exact / np.sqrt(1 + 1e-5), rtol=1e-5)


@pytest.mark.parametrize("where", ["constructor", "call"])
@pytest.mark.parametrize(("training", "evaluation"), SPELLINGS, ids=["train", "use_running_average"])
def test_both_spellings_of_training_work_in_nnx(training, evaluation, where):
    def run(told):
        norm = partial(jn.nnx.Norm, jn.BatchNorm(momentum=0.9), 8, **(told if where == "constructor" else {}))()
        return norm(ROWS, **({} if where == "constructor" else told)), norm.mean[...]

    exact = np.asarray(ROWS, float)
    y, mean = run(training)
    np.testing.assert_allclose(y, (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mean, 0.1 * exact.mean(0), rtol=1e-5)
    y, mean = run(evaluation)
    np.testing.assert_allclose(y, exact / np.sqrt(1 + 1e-5), rtol=1e-5)
    np.testing.assert_array_equal(mean, 0)


@pytest.mark.parametrize("told", [{"train": True}, {"train": False}])
def test_both_spellings_at_once_are_refused(told):
    both = {**told, "use_running_average": told["train"]}
    variables = jn.linen.Norm(BN).init(KEY, ROWS, train=False)
    says(lambda: jn.linen.Norm(BN).apply(variables, ROWS, **both), "train", "use_running_average")
    says(lambda: jn.nnx.Norm(BN, 8)(ROWS, **both), "train", "use_running_average")


@dataclass(frozen=True)
class ZeroInit:
    """A user's spec, that starts at 0: any class with `init` and `apply`."""

    inner: jn.LayerNorm = jn.LayerNorm()  # noqa: RUF009

    def init(self, features, *args, **kwargs):
        params, state = self.inner.init(features, *args, **kwargs)
        return params._replace(scale=0 * params.scale, bias=params.bias + 3), state

    def apply(self, params, state, x, *, train, **kwargs):
        return self.inner.apply(params, state, x, train=train, **kwargs)


def test_the_scale_and_bias_that_a_spec_starts_with():
    """A zero-initialised norm is zero in both kinds of modules, unless an initializer says otherwise."""
    module = jn.linen.Norm(ZeroInit(), train=True)
    y, variables = module.init_with_output(KEY, X)
    np.testing.assert_array_equal(variables["params"]["scale"], np.zeros(8))
    np.testing.assert_array_equal(variables["params"]["bias"], np.full(8, 3))
    np.testing.assert_array_equal(y, np.full(X.shape, 3))
    norm = jn.nnx.Norm(ZeroInit(), 8)
    np.testing.assert_array_equal(norm(X), np.full(X.shape, 3))
    ones = nn.initializers.ones
    given = jn.linen.Norm(ZeroInit(), train=True, scale_init=ones).init(KEY, X)["params"]
    np.testing.assert_array_equal(given["scale"], np.ones(8))
    np.testing.assert_array_equal(given["bias"], np.full(8, 3))
    given = jn.nnx.Norm(ZeroInit(), 8, nnx.Rngs(0), scale_init=ones)
    np.testing.assert_array_equal(given.scale[...], np.ones(8))
    np.testing.assert_array_equal(given.bias[...], np.full(8, 3))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("BatchNorm", {}),
        ("BatchNorm", {"use_scale": False}),
        ("BatchNorm", {"use_scale": False, "use_bias": False}),
        ("LayerNorm", {}),
        ("LayerNorm", {"use_bias": False}),
        ("RMSNorm", {}),
        ("GroupNorm", {}),
        ("InstanceNorm", {}),
    ],
    ids=str,
)
def test_later_layers_start_as_beside_a_norm_of_flax(name, arguments):
    """A norm draws as many keys as Flax's: every other weight of a model is the same, from the same seed."""

    def weights(norm):
        rngs = nnx.Rngs(0)
        before, _, after = nnx.Linear(8, 8, rngs=rngs), norm(rngs), nnx.Linear(8, 4, rngs=rngs)
        return before.kernel[...], after.kernel[...]

    theirs = partial(getattr(nnx, name), 8, **({"num_groups": 2} if name == "GroupNorm" else {}), **arguments)
    spec = SPECS[name](**arguments)
    for ours, flax in zip(
        weights(lambda rngs: jn.nnx.Norm(spec, 8, rngs)), weights(lambda rngs: theirs(rngs=rngs)), strict=True
    ):
        np.testing.assert_array_equal(ours, flax)
    # And without keys it does without.
    np.testing.assert_allclose(jn.nnx.Norm(spec, 8)(X), jn.nnx.Norm(spec, 8, nnx.Rngs(0))(X))

"""What the README and the pages show runs and prints what they say, and what they claim is a test that exists."""

import inspect
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flags import AS_USERS

import jaxnorm as jn

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))
from formulas import is_formula, tex  # noqa: E402

README = (ROOT / "README.md").read_text()
MIGRATION = (ROOT / "docs" / "migration.md").read_text()
AFTER_TRAINING = (ROOT / "docs" / "after_training.md").read_text()
FAMILY = (ROOT / "docs" / "family.md").read_text()
TRANSFORMERS = (ROOT / "docs" / "transformers.md").read_text()
DISTRIBUTED = (ROOT / "docs" / "distributed.md").read_text()
X = jax.random.normal(jax.random.key(1), (8, 6, 6, 3)) * 2 + 5


def run(page, *kinds):
    """What the examples of these kinds define, run one after the other; most need no other library and have no kind."""
    scope = {}
    for kind, block in re.findall(r"```python(.*)\n((?:.*\n)*?)```", page):
        if kind.strip() in ("", *kinds):
            exec(block, scope)
    return scope


def test_examples_of_the_readme():
    scope = run(README)
    np.testing.assert_allclose(scope["state"].mean, 0.1 * scope["x"].mean((0, 1, 2)), atol=1e-6)


def test_claims_name_tests():
    tests = "".join(p.name + p.read_text() for p in (ROOT / "tests").rglob("*.py"))
    page = (ROOT / "docs" / "differences.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|") and "`test_" in line]
    assert len(rows) >= 9
    for name in re.findall(r"`(test_\w+(?:\.py)?)`", "".join(rows)):
        assert name in tests


def test_examples_of_migration():
    scope = run(MIGRATION)
    np.testing.assert_allclose(scope["state"].mean, 0.1, rtol=1e-6)
    assert scope["y"].shape == (2, 3, 4, 4)
    assert scope["updates"]["batch_stats"]["mean"].shape == (3,)


@pytest.mark.long
def test_examples_of_distributed():
    with jax.numpy_dtype_promotion("standard"):  # for optax.MultiSteps
        scope = run(DISTRIBUTED)
    assert scope["state"].weight_sum is None
    assert scope["y"].shape == (64, 8, 8, 16)
    np.testing.assert_allclose(scope["total"].var, np.asarray(scope["parts"][:2]).var((0, 1, 2, 3)), rtol=1e-5)


LONG = [
    pytest.param(name, marks=pytest.mark.long) for name in ("specs", "flax", "masks", "troubleshooting", "which_norm")
]


@pytest.mark.parametrize("name", ["quickstart", "recipes", *LONG])
def test_examples_of_a_page(name, capsys):
    printing((ROOT / "docs" / f"{name}.md").read_text(), capsys)


def printing(page, capsys):
    """What the examples define; they print what their comments say."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        scope = run(page)
    printed = capsys.readouterr().out.splitlines()
    # After a line of code, not at the beginning of some.
    promised = re.findall(r"(?<=\S\n)(?<!python\n)^# (.*)$", page, re.MULTILINE)
    for got, want in zip(printed, promised, strict=True):
        assert re.fullmatch(re.escape(want).replace(re.escape("..."), ".*"), got), (got, want)
    return scope


@pytest.mark.long
def test_examples_of_transformers(capsys):
    """Beside their formulas, in NumPy and float64."""
    scope = printing(TRANSFORMERS, capsys)
    x, q, z, residual, shift, factor = (np.float64(scope[n]) for n in ("x", "q", "z", "residual", "shift", "factor"))
    silu = lambda v: v / (1 + np.exp(-v))

    def rms(v, axis=-1, epsilon=1e-5):
        return v / np.sqrt((v**2).mean(axis, keepdims=True) + epsilon)

    centred = x - x.mean(-1, keepdims=True)
    want = {
        "y_gemma": 1.5 * rms(x, epsilon=1e-6),
        "each_head": 2 * rms(q, epsilon=1e-6),
        "all_heads": 2 * rms(q, (-2, -1), 1e-6),
        "gated_after": 2 * rms(x) * silu(z),
        "gated_before": 2 * rms(x * silu(z)),
        "gated_in_groups": 2 * rms((x * silu(z)).reshape(2, 6, 4, 8)).reshape(x.shape),
        "adaptive": rms(centred, epsilon=1e-6) * (1 + factor) + shift,
        "sandwich": x + rms(np.tanh(2 * rms(x))) / 2,
        "normed": 2 * rms(x + residual),
        "stream": x + residual,
    }
    for name, value in want.items():
        np.testing.assert_allclose(scope[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.long
def test_examples_of_the_family(capsys):
    """Beside their formulas, in NumPy and float64."""
    scope = printing(FAMILY, capsys)
    x, style, w = (np.float64(scope[name]) for name in ("x", "style", "w"))

    def standardized(v, axes, epsilon=1e-5):
        return (v - v.mean(axes, keepdims=True)) / np.sqrt(v.var(axes, keepdims=True) + epsilon)

    labels, gammas, betas, segments = (np.asarray(scope[n]) for n in ("labels", "gammas", "betas", "segments"))
    each = lambda table: table[labels][:, None, None, :]
    flat = (0, 1, 2)
    root = lambda v, axes, epsilon=1e-5: np.sqrt(v.var(axes, keepdims=True) + epsilon)
    mean_square = lambda v, axes: (v**2).mean(axes, keepdims=True)
    length = np.sqrt((x**2).sum((1, 2), keepdims=True))
    groups = np.repeat(x.reshape(4, 36, 2, 4).var((1, 3)), 4, -1)[:, None, None, :]
    windows = sum(np.pad(x, [(0, 0)] * 3 + [(2, 2)])[..., i : i + 8] ** 2 for i in range(5))
    matrix = w.reshape(-1, 16)
    want = {
        "as_batch_norm": standardized(x, flat),
        "renormed": np.clip(x.mean(flat) / np.sqrt(1 + 1e-5), -5, 5)
        + standardized(x, flat) * np.clip(root(x, flat) / np.sqrt(1 + 1e-5), 1 / 3, 3),
        "ibn": np.concatenate([standardized(x[..., :4], (1, 2)), standardized(x[..., 4:], flat)], -1),
        "ys": np.stack([standardized(v, flat) for v in (x, 3 * x - 1)]),
        "by_class": each(gammas) * standardized(x, flat) + each(betas),
        "film": each(gammas) * x + each(betas),
        "spade": (1 + segments @ gammas) * standardized(x, flat) + segments @ betas,
        "styled": root(style, (1, 2)) * standardized(x, (1, 2)) + style.mean((1, 2)),
        "responses": np.maximum(x / np.sqrt(mean_square(x, (1, 2)) + 1e-6), 0),
        "evolved": x / (1 + np.exp(-x)) / np.sqrt(groups + 1e-5),
        "global_response": 0.5 * x * length / (length.mean(-1, keepdims=True) + 1e-6) + x,
        "local_response": x / (1 + 1e-4 / 5 * windows) ** 0.75,
        "unit": x / (np.abs(x) ** 3).sum(-1, keepdims=True) ** (1 / 3),
        "squashed": np.tanh(0.8 * x),
        "w_hat": 2 * w / np.sqrt((w**2).sum((0, 1, 2))),
        "standard": standardized(w, (0, 1, 2)),
        "scaled": 1.7 / 72**0.5 * standardized(w, (0, 1, 2)),
        "spectral": w / np.linalg.svd(matrix, compute_uv=False)[0],
    }
    for name, value in want.items():
        np.testing.assert_allclose(scope[name], value, rtol=2e-5, atol=2e-5, err_msg=name)
    second = 0.9 * (0.9 + 0.1 * (3 * x).var(flat)) + 0.1 * (3 * x).var(flat)
    np.testing.assert_allclose(scope["states"].var, [0.9 + 0.1 * x.var(flat), second], rtol=1e-5)


@pytest.mark.long
def test_examples_of_after_training(capsys):
    """And what their comments say that they print."""
    scope = printing(AFTER_TRAINING, capsys)
    assert scope["labels"]["BatchNorm_0"] == {"scale": "norm", "bias": "norm"}
    assert scope["scaled"]["speed"].shape == (64, 3)
    np.testing.assert_allclose(scope["y"].shape, (32, 2))


def trained(step):
    """Trains on two batches, then checks the output and the running statistics against the oracle."""
    bn = jn.BatchNorm(momentum=0.9)
    np.testing.assert_allclose(step(X, True)[0], oracle.normalize(bn, X), rtol=1e-4, atol=1e-5)
    y, (mean, var) = step(2 * X, True)
    want = 0.0, 1.0
    for x in (X, 2 * X):
        x = np.asarray(x, float)
        want = 0.9 * want[0] + 0.1 * x.mean((0, 1, 2)), 0.9 * want[1] + 0.1 * x.var((0, 1, 2))
    np.testing.assert_allclose(mean, want[0], rtol=1e-5)
    np.testing.assert_allclose(var, want[1], rtol=1e-5)
    y, _ = step(X, False)
    np.testing.assert_allclose(y, (np.asarray(X) - want[0]) / np.sqrt(want[1] + 1e-5), rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_examples_for_haiku():
    pytest.importorskip("haiku")
    scope = run(MIGRATION, "haiku")
    net, params, state = scope["net"], *scope["net"].init(None, X, train=False)

    def step(x, train):
        nonlocal state
        y, state = jax.jit(net.apply, static_argnames="train")(params, state, None, x, train=train)
        return y, state["norm"]["state"][:2]

    trained(step)
    np.testing.assert_allclose(scope["y_haiku"], jn.batch_norm(scope["x"], None, train=True)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.long
def test_examples_for_equinox():
    eqx = pytest.importorskip("equinox")
    scope = run(MIGRATION, "equinox")
    assert scope["of_one"].shape == (3, 6, 6)
    norm, state = eqx.nn.make_with_state(jn.equinox.Norm)(jn.BatchNorm(momentum=0.9), 3)

    def step(x, train):
        nonlocal state
        y, state = eqx.filter_jit(norm)(x, state, inference=not train)
        return y, state.get(norm.state_index)[:2]

    trained(step)


def test_the_table_for_torch():
    """Row by row, where torch is installed; `jn.batch_norm` against its formulas is tested everywhere."""
    torch = pytest.importorskip("torch")
    x = np.asarray(X).transpose(0, 3, 1, 2)
    given = torch.tensor(x)
    theirs = torch.nn.BatchNorm2d(3, momentum=0.1)
    bn = jn.BatchNorm(channel_axis=1, momentum=0.9, ddof=1)
    params, state = bn.init(3)
    y, state = bn.apply(params, state, x, train=True)
    np.testing.assert_allclose(y, theirs(given).detach().numpy(), atol=1e-4)
    np.testing.assert_allclose(state.mean, theirs.running_mean.numpy(), rtol=1e-5)
    np.testing.assert_allclose(state.var, theirs.running_var.numpy(), rtol=1e-5)
    for module, spec in (
        (torch.nn.InstanceNorm2d(3), jn.InstanceNorm(channel_axis=1)),
        (torch.nn.GroupNorm(3, 3), jn.GroupNorm(groups=3, channel_axis=1)),
        (torch.nn.LayerNorm(6), jn.LayerNorm()),
        (torch.nn.LayerNorm((6, 6)), jn.LayerNorm(axis=(-2, -1))),
        (torch.nn.RMSNorm(6), jn.RMSNorm(epsilon=jnp.finfo(jnp.float32).eps)),
    ):
        y, _ = spec.apply(jn.Affine(), None, x, train=True)
        np.testing.assert_allclose(y, module(given).detach().numpy(), atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("activation", [jax.nn.silu, jax.nn.relu, jax.nn.gelu])
def test_an_activation_is_fused_into_the_norm(activation):
    """The compiled program accesses as many bytes with it as without: docs/family.md."""
    x = jnp.ones((8, 16, 16, 64))
    norm = lambda x: jn.group_norm(x, groups=8)
    accessed = lambda f: jax.jit(f).lower(x).compile(compiler_options=AS_USERS).cost_analysis()["bytes accessed"]
    assert accessed(lambda x: activation(norm(x))) <= 1.001 * accessed(norm)


@pytest.mark.parametrize(
    ("formula", "want"),
    [
        ("y = (o + γ) x̂ + β", r"y\ =\ (o\ +\ \gamma )\ \hat{x}\ +\ \beta "),
        ("√(⟨|x|²⟩ + ε)", r"\sqrt{\langle |x|^{2}\rangle \ +\ \varepsilon }"),
        ("σ_B, r_max, `scale_offset`", r"\sigma _{B},\ r_{\text{max}},\ \texttt{scale_offset}"),
        ("(Σ |x|^p)^(1/p),    wᵢ", r"(\textstyle\sum \ |x|^p)^{1/p},\qquad w_{i}"),
        ("mean over `axis`", r"\text{mean over}\ \texttt{axis}"),
    ],
)
def test_formulas_of_docstrings(formula, want):
    assert tex(formula) == want


def test_every_docstring_of_a_norm_has_a_formula_that_is_set():
    for name in ("batch_norm", "layer_norm", "RMSNorm", "EvoNormB0", "spectral_norm", "Moments"):
        paragraphs = inspect.getdoc(getattr(jn, name)).split("\n\n")
        assert any(is_formula(paragraph.split("\n")) for paragraph in paragraphs), name

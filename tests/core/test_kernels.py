"""Norms of rows: every implementation passes the same tests.

Kernels are interpreted on a CPU. What they refuse is in test_kernels_refused.py, what compilers make of them in
test_compilers.py.
"""

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from devices import mesh
from interpreted import compiled, interpreted, value_and_pull
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

import jaxnorm as jn
from benchmarks import hlo

SPECS = {"layer": jn.LayerNorm(), "rms": jn.RMSNorm(use_bias=True)}
VERBS = {"layer": jn.layer_norm, "rms": jn.rms_norm}
both = pytest.mark.parametrize("kind", VERBS)


@pytest.fixture
def float16(implementation, request):
    """Whether the implementation has it."""
    return request.node.callspec.params["implementation"] != "mosaic"


def norm(kind, implementation, **kwargs):
    return partial(VERBS[kind], implementation=implementation, **kwargs)


def data(shape, mean=0.0, dtype=jnp.float32):
    """x, scale and bias, and a cotangent."""
    keys = jax.random.split(jax.random.key(0), 4)
    x = (jax.random.normal(keys[0], shape) + mean).astype(dtype)
    scale, bias = (1 + jax.random.uniform(key, shape[-1:]) for key in keys[1:3])
    return x, scale, bias, jax.random.normal(keys[3], shape).astype(dtype)


def exact(kind, x, scale, bias, g, epsilon=1e-5):
    """y, and the cotangents of x, scale and bias in float64; for the last two the sums of absolute terms, too."""
    x, scale, bias, g = (np.asarray(v, np.float64) for v in (x, scale, bias, g))
    y = oracle.normalize(SPECS[kind], x, scale, bias)
    mean = lambda v: v.mean(-1, keepdims=True)
    d = x - mean(x) if kind == "layer" else x
    r = 1 / np.sqrt(mean(d * d) + epsilon)
    w = g * scale
    dx = r * (w - (mean(w) if kind == "layer" else 0) - d * r * mean(w * d * r))
    terms = [np.reshape(v, (-1, x.shape[-1])) for v in (g * d * r, g)]
    return y, dx, [v.sum(0) for v in terms], [np.abs(v).sum(0) for v in terms]


def compare(kind, run, x, scale, bias, g, units):
    """y, dx, dscale and dbias, each within so many units of 2⁻²⁴ (1 + |.|), of the terms where they are sums."""
    y, (dx, *sums) = run(g, x, scale, bias)
    exact_y, exact_dx, exact_sums, sizes = exact(kind, x, scale, bias, g)
    errors = {"y": oracle.ulps(y, exact_y), "dx": oracle.ulps(dx, exact_dx)}
    for name, got, want, size in zip(("dscale", "dbias"), sums, exact_sums, sizes, strict=True):
        errors[name] = np.max(np.abs(np.asarray(got, np.float64) - want) / (1 + size)) * 2**24
    assert y.dtype == dx.dtype == x.dtype
    assert max(errors.values()) < units, errors


@both
def test_values_and_derivatives(kind, implementation):
    run = value_and_pull(norm(kind, implementation))
    for mean in (0, 1e4, 1e6):
        compare(kind, run, *data((24, 768), mean), units=16)


def in_turn(names):
    """Layer and RMS norm in turn: to compile is what takes the time of these tests."""
    return pytest.mark.parametrize(("name", "kind"), list(zip(names, itertools.cycle(VERBS))), ids=str)


@in_turn([(5, 1), (1, 7), (77, 7), (2, 3, 96), (77, 128), (1, 768), (77, 1000), (5, 3000)])
def test_any_number_of_rows_and_features(name, kind, implementation):
    compare(kind, value_and_pull(norm(kind, implementation)), *data(name, 3), units=16)


@in_turn(["bfloat16", "float16"])
def test_narrow_floats(name, kind, implementation, float16):
    """Rounded to the dtypes of the arguments, and once."""
    x, scale, bias, g = (v.astype(name) for v in data((77, 96), 3))
    run = value_and_pull(norm(kind, implementation))
    if name == "float16" and not float16:
        with pytest.raises(NotImplementedError, match="float16"):
            run(g, x, scale, bias)
        return
    compare(kind, run, x, scale, bias, g, units={"bfloat16": 2**17, "float16": 2**14}[name])
    assert {v.dtype for v in jax.tree.leaves(run(g, x, scale, bias))} == {jnp.dtype(name)}


def operands(name):
    """x, scale and bias as users have them, and further arguments of the norm."""
    key = jax.random.split(jax.random.key(3), 3)
    draw = lambda i, *shape: 1 + jax.random.normal(key[i], shape)
    match name:
        case "per example":
            return draw(0, 3, 5, 96), draw(1, 3, 1, 96), draw(2, 96), {}
        case "per position":
            return draw(0, 3, 5, 96), draw(1, 3, 5, 96), draw(2, 3, 1, 1), {}
        case "scalars":
            return draw(0, 5, 96), draw(1), draw(2), {}
        case "no scale":
            return draw(0, 5, 96), None, draw(2, 96), {}
        case "no bias":
            return draw(0, 5, 96), draw(1, 96), None, {}
        case "neither":
            return draw(0, 5, 96), None, None, {}
        case "several axes":
            return draw(0, 5, 3, 4, 8), draw(1, 3, 4, 8), draw(2, 3, 4, 8), {"axis": (-1, 1, 2)}
        case "queries and keys":
            return draw(0, 2, 7, 4, 16), draw(1, 16), None, {}
        case "offset":
            return draw(0, 5, 96), draw(1, 96), None, {"scale_offset": 1.0}
        case "offset per example":
            return draw(0, 3, 5, 96), draw(1, 3, 1, 96), draw(2, 96), {"scale_offset": -0.5}
        case _:
            return draw(0, 96), draw(1, 96), draw(2, 96), {"epsilon": 0.1}


OPERANDS = [
    "per example", "per position", "scalars", "no scale", "no bias", "neither", "several axes", "queries and keys",
    "one row", "offset", "offset per example",
]  # fmt: skip


@cache
def by_xla(test, kind, name=None):
    """What a test compares with, once for all implementations."""
    return test(kind, "xla", *([] if name is None else [name]))


def pulled(kind, implementation, name):
    *args, kwargs = operands(name)
    return jax.tree.leaves(value_and_pull(norm(kind, implementation, **kwargs))(jnp.cos(args[0]), *args))


def pushed(kind, implementation, name):
    *args, kwargs = operands(name)
    tangents = tuple(jax.tree.map(jnp.sin, args))
    return compiled(lambda *args: jax.jvp(norm(kind, implementation, **kwargs), args, tangents))(*args)


@in_turn(OPERANDS)
def test_any_scale_and_bias_and_axes(name, kind, implementation):
    for got, want in zip(pulled(kind, implementation, name), by_xla(pulled, kind, name), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5)


@in_turn(["per example", "one row", "neither", "no bias"])
def test_tangent_and_cotangent_are_transposes(name, kind, implementation):
    """⟨g, dy⟩ = ⟨cotangents, tangents⟩; the tangent is that of XLA's way, too."""
    *args, _ = operands(name)
    _, dy = pushed(kind, implementation, name)
    _, *cotangents = pulled(kind, implementation, name)
    dot = lambda v, w: np.vdot(np.float64(v), np.float64(w))
    tangents = jax.tree.leaves(jax.tree.map(jnp.sin, args))
    want = sum(dot(v, w) for v, w in zip(cotangents, tangents, strict=True))
    np.testing.assert_allclose(dot(jnp.cos(args[0]), dy), want, rtol=1e-5)
    np.testing.assert_allclose(dy, by_xla(pushed, kind, name)[1], rtol=1e-4, atol=1e-5)


def second(kind, implementation):
    """The Hessian in x, and the derivative in epsilon."""
    x, scale, bias, _ = data((2, 8))
    f = lambda x, e: (norm(kind, implementation, epsilon=e)(x, scale, bias) ** 3).sum()
    return compiled(lambda x, e: (jax.hessian(f)(x, e), jax.grad(f, 1)(x, e)))(x, 0.1)


@both
def test_second_derivatives(kind, implementation):
    for got, want in zip(second(kind, implementation), by_xla(second, kind), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.once
def test_derivatives_by_differences(implementation):
    # Of one program: operations one by one are what takes time.
    check_grads(jax.jit(norm("layer", implementation)), data((2, 8))[:3], 2, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("kind", "names"), [("layer", ["x", "all"]), ("rms", ["scale", "epsilon"])])
def test_vmap_is_a_loop(kind, names, implementation):
    x, scale, bias, g = data((3, 5, 96), 3)
    many = x, jnp.stack([scale, scale + 1, scale + 2]), jnp.array([1e-5, 0.1, 1.0])

    def one(x, scale, epsilon):
        y, pull = jax.vjp(lambda x, scale: norm(kind, implementation, epsilon=epsilon)(x, scale, bias), x, scale)
        return y, pull(g[0])

    loop = compiled(one)
    for name in names:
        axes = tuple(0 if name in (which, "all") else None for which in ("x", "scale", "epsilon"))
        args = [v if axis == 0 else v[0] for v, axis in zip(many, axes, strict=True)]
        each = [loop(*(v[i] if axis == 0 else v for v, axis in zip(args, axes, strict=True))) for i in range(3)]
        want = jax.tree.map(lambda *v: jnp.stack(v), *each)
        got = compiled(jax.vmap(one, axes))(*args)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), got, want)


@both
def test_rows_do_not_know_of_each_other(kind, implementation):
    """To the last bit; NaN and what overflows fill their row of y and dx, and no other."""
    x, scale, bias, g = data((77, 96), 3)
    run = value_and_pull(norm(kind, implementation))
    y, (dx, *_) = run(g, x, scale, bias)
    poor = {3: jnp.nan, 40: jnp.inf, 76: 1e30}
    other = x.at[2].set(1e4).at[tuple(poor), 5].set(jnp.array(list(poor.values())))
    other_y, (other_dx, *_) = run(g, other, scale, bias)
    same = np.setdiff1d(np.arange(77), [2, *poor])
    np.testing.assert_array_equal(y[same], other_y[same])
    np.testing.assert_array_equal(dx[same], other_dx[same])
    assert np.isnan(other_y[jnp.array(list(poor))]).all()
    assert np.isnan(other_dx[jnp.array(list(poor))]).all()
    assert np.isfinite(other_y[2]).all()


@pytest.mark.parametrize("width", [7, 100])
def test_constants_give_the_bias(width, implementation):
    _, scale, bias, g = data((5, width))
    x = jnp.broadcast_to(jnp.array([0.0, 0.1, 3.7e4, -7e-3, 1e6])[:, None], (5, width))
    for kind in VERBS:
        run = value_and_pull(lambda x, scale, bias, e, kind=kind: norm(kind, implementation, epsilon=e)(x, scale, bias))
        for epsilon in (0.0, 1e-5):
            y, (dx, *_) = run(g, x, scale, bias, epsilon)
            constant = slice(None) if kind == "layer" else slice(1)
            np.testing.assert_allclose(np.asarray(y)[constant] - np.asarray(bias), 0, atol=1e-5)
            assert np.isfinite(dx).all()


@both
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_x_and_vectors_are_kept_for_the_backward_pass(kind, dtype, implementation):
    x, scale, bias, _ = data((512, 96), dtype=jnp.dtype(dtype))
    _, pull = jax.eval_shape(lambda *args: jax.vjp(norm(kind, implementation), *args), x, scale, bias)
    kept = jax.tree.leaves(pull)
    assert sum(v.size * v.dtype.itemsize for v in kept) <= x.nbytes + 3 * scale.nbytes
    assert any((v.shape, v.dtype) == (x.shape, x.dtype) for v in kept)


def placed(v, *spec):
    return jax.device_put(v, NamedSharding(mesh(data=2, time=2), P(*spec)))


def collectives(program):
    return dict(hlo.traffic(program.as_text()).collectives)


PLACES = {"two axes": ("data", "time"), "one axis": ("data",), "features": ("data", None, "time")}


@pytest.mark.parametrize("place", PLACES)
def test_sharded_rows_stay_where_they_are(place, implementation):
    """Under plain jit: y and dx lie as x, and dscale and dbias are one sum."""
    x, scale, bias, g = data((4, 6, 96), 3)
    spec = PLACES[place]
    args = placed(g, *spec), placed(x, *spec), placed(scale), placed(bias)
    program = value_and_pull(norm("layer", implementation)).lower(*args).compile()
    compare("layer", lambda *_: program(*args), x, scale, bias, g, units=16)
    if place != "features":
        # XLA for CPUs does not join those that it makes itself.
        assert collectives(program) in ({"all-reduce": 1}, {"all-reduce": 2})[: 1 if implementation else 2]
        y, (dx, dscale, dbias) = program(*args)
        assert all(v.sharding.is_equivalent_to(args[1].sharding, 3) for v in (y, dx))
        assert dscale.sharding.is_fully_replicated
        assert dbias.sharding.is_fully_replicated
    if place == "two axes":
        assert collectives(compiled(norm("layer", implementation)).lower(*args[1:]).compile()) == {}


def test_a_scale_of_each_example_stays_there(implementation):
    """Nothing but sums is sent; these are compared with those of one device in `test_any_scale_and_bias_and_axes`."""
    x, _, bias, g = data((4, 6, 96), 3)
    args = placed(g, "data", "time"), placed(x, "data", "time"), placed(1 + jnp.cos(x[:, :1]), "data"), placed(bias)
    program = value_and_pull(norm("rms", implementation)).lower(*args).compile()
    assert set(collectives(program)) == {"all-reduce"}
    got, want = program(*args), value_and_pull(norm("rms", "xla"))(*map(jnp.asarray, args))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5), got, want)


def test_shard_map(implementation):
    """Unchecked, as interpreted kernels don't say how they vary over a mesh; checked in test_compilers.py."""
    x, scale, bias, g = data((4, 6, 96), 3)
    spec, each = P("data", "time"), P(("data", "time"))

    def shard(g, x, scale, bias):
        y, pull = jax.vjp(norm("layer", implementation), x, scale, bias)
        dx, *sums = pull(g)
        return y, dx, *(v[None] for v in sums)

    sharded = jax.shard_map(
        shard,
        mesh=mesh(data=2, time=2),
        in_specs=(spec, spec, P(), P()),
        out_specs=(spec, spec, each, each),
        check_vma=False,
    )
    y, dx, *sums = compiled(sharded)(g, x, scale, bias)
    compare("layer", lambda *_: (y, (dx, *(v.sum(0) for v in sums))), x, scale, bias, g, units=16)


@pytest.mark.parametrize("named", [True, False])
def test_without_the_hook_values_are_right(named, monkeypatch):
    """JAX has no public way to say that an operation needs to know its devices: see partition.devices_known."""
    from jax._src import dispatch

    known = dispatch.prim_requires_devices_during_lowering
    monkeypatch.setattr(
        dispatch, "prim_requires_devices_during_lowering", {v for v in known if not v.name.startswith("jaxnorm_")}
    )
    x, scale, bias, g = data((4, 6, 96), 3)
    with interpreted("triton") as name:
        args = placed(g, "data", "time"), placed(x, "data", "time"), placed(scale), placed(bias)
        program = value_and_pull(norm("layer", name if named else None)).lower(*args).compile()
        # Without a name there is no kernel then, and nothing is gathered for one.
        assert ("all-gather" in collectives(program)) == named
        compare("layer", lambda *_: program(*args), x, scale, bias, g, units=16)

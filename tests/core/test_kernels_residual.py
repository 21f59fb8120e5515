"""Kernels that add a residual: they do what the sum and the norm of it do, and keep the sum alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import mesh
from interpreted import compiled, interpreted, value_and_pull
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm as jn
from benchmarks import hlo

VERBS = {"layer": (jn.add_layer_norm, jn.layer_norm), "rms": (jn.add_rms_norm, jn.rms_norm)}
ALIKE = {"rtol": 1e-5, "atol": 2e-5}
both = pytest.mark.parametrize("kind", VERBS)


@pytest.fixture(scope="module", params=["triton", "mosaic"])
def implementation(request):
    """Kernels: without one, these verbs are what they are compared with."""
    with interpreted(request.param) as name:
        yield name


def added(kind, implementation, **kwargs):
    return partial(VERBS[kind][0], implementation=implementation, **kwargs)


def written_out(kind, **kwargs):
    """The sum, in the dtype that holds both, and XLA's norm of it."""

    def apply(x, residual, scale, bias):
        wide = jnp.dtype("float32") if x.dtype != residual.dtype else x.dtype
        h = x.astype(wide) + residual.astype(wide)
        return VERBS[kind][1](h, scale, bias, dtype=x.dtype, implementation="xla", **kwargs), h

    return apply


def data(shape, dtypes=("float32", "float32")):
    """x, residual, scale and bias, and cotangents of y and h."""
    keys = jax.random.split(jax.random.key(0), 6)
    x, residual, g, direct = (jax.random.normal(k, shape) for k in keys[:4])
    x, residual = x.astype(dtypes[0]), (residual + 3).astype(dtypes[1])
    cotangents = g.astype(x.dtype), direct.astype("float32" if dtypes[0] != dtypes[1] else dtypes[0])
    return (x, residual, *(1 + jax.random.uniform(k, shape[-1:]) for k in keys[4:])), cotangents


def close(got, want, rtol=1e-5, atol=2e-5):
    def compare(got, want):
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        np.testing.assert_allclose(np.float64(got), np.float64(want), rtol=rtol, atol=atol)

    jax.tree.map(compare, got, want)


@both
@pytest.mark.parametrize("shape", [(77, 7), (2, 9, 100)])
def test_values_and_cotangents(kind, shape, implementation):
    args, cotangents = data(shape)
    got = value_and_pull(added(kind, implementation))(cotangents, *args)
    close(got, value_and_pull(written_out(kind))(cotangents, *args), atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "dtypes"),
    [("layer", ("bfloat16", "bfloat16")), ("rms", ("bfloat16", "float32")), ("layer", ("float32", "bfloat16"))],
)
def test_a_stream_may_be_wider_or_narrower(kind, dtypes, implementation):
    """h is rounded as the sum is. XLA may take y of what was not rounded yet, so that y is compared within that."""
    args, cotangents = data((20, 96), dtypes)
    (y, h), (dx, dresidual, *_) = value_and_pull(added(kind, implementation))(cotangents, *args)
    (want_y, want_h), want = value_and_pull(written_out(kind))(cotangents, *args)
    np.testing.assert_array_equal(h, want_h)
    close(y, want_y, rtol=2**-5, atol=2e-2)
    close((dx, dresidual), tuple(want[:2]), rtol=2**-7, atol=2e-2)


@pytest.mark.parametrize("result", [0, 1], ids=["y", "h"])
def test_a_result_without_cotangent_adds_nothing(result, implementation):
    args, cotangents = data((20, 96))
    only = lambda f: lambda *args: f(*args)[result]
    got = value_and_pull(only(added("layer", implementation)))(cotangents[result], *args)
    close(got, value_and_pull(only(written_out("layer")))(cotangents[result], *args), atol=1e-4)


def test_a_scale_and_offset_for_each_example(implementation):
    (x, residual, _, bias), cotangents = data((3, 5, 96))
    args = x, residual, jnp.cos(x[:, :1]), bias
    got = value_and_pull(added("layer", implementation, scale_offset=1.0))(cotangents, *args)
    close(got, value_and_pull(written_out("layer", scale_offset=1.0))(cotangents, *args), atol=1e-4)


@pytest.mark.parametrize(("kind", "moved"), [("layer", "all"), ("layer", "residual"), ("rms", "x"), ("rms", "scale")])
def test_tangents(kind, moved, implementation):
    args, _ = data((5, 96))
    names = ("x", "residual", "scale", "bias")
    of = [i for i, name in enumerate(names) if moved in (name, "all")]

    def pushed(f):
        some = lambda *moved: f(*(moved[of.index(i)] if i in of else v for i, v in enumerate(args)))
        primals = [args[i] for i in of]
        return compiled(lambda: jax.jvp(some, primals, [jnp.sin(v) for v in primals]))()

    close(pushed(added(kind, implementation)), pushed(written_out(kind)), atol=1e-4)


@pytest.mark.once
def test_second_derivatives(implementation):
    args, _ = data((2, 8))

    def second(f):
        loss = lambda x, residual: sum((v**3).sum() for v in f(x, residual, *args[2:]))
        return compiled(jax.hessian(loss, (0, 1)))(*args[:2])

    close(second(added("layer", implementation)), second(written_out("layer")), rtol=1e-4, atol=1e-3)


@pytest.mark.once
def test_derivative_in_epsilon(implementation):
    args, _ = data((5, 96))
    slope = lambda verb: jax.grad(lambda epsilon: sum(v.sum() for v in verb(*args[:3], epsilon=epsilon)))(0.1)
    normed = lambda x, residual, scale, epsilon: (jn.rms_norm(x + residual, scale, epsilon=epsilon),)
    np.testing.assert_allclose(slope(added("rms", implementation)), slope(normed), rtol=1e-4)


def test_vmap_is_a_loop(implementation):
    args, cotangents = data((3, 5, 96))

    def one(cotangents, *args):
        results, pull = jax.vjp(added("layer", implementation), *args)
        return results, pull(cotangents)

    got = compiled(jax.vmap(one, (0, 0, None, None, None)))(cotangents, args[0], args[1][0], *args[2:])
    run = compiled(one)
    each = [run(tuple(v[i] for v in cotangents), args[0][i], args[1][0], *args[2:]) for i in range(3)]
    jax.tree.map(partial(np.testing.assert_allclose, **ALIKE), got, jax.tree.map(lambda *v: jnp.stack(v), *each))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_sum_is_what_is_kept(dtype, implementation):
    args, _ = data((512, 96), (dtype, dtype))
    _, pull = jax.eval_shape(lambda *args: jax.vjp(added("layer", implementation), *args), *args)
    kept = sum(v.size * v.dtype.itemsize for v in jax.tree.leaves(pull))
    assert kept <= args[0].nbytes + 3 * args[2].nbytes


def test_sharded_rows_stay_where_they_are(implementation):
    args, cotangents = data((4, 6, 96))
    place = lambda v, *spec: jax.device_put(v, NamedSharding(mesh(data=2, time=2), P(*spec)))
    rows = [place(v, "data", "time") for v in (*cotangents, *args[:2])]
    vectors = [place(v) for v in args[2:]]
    program = value_and_pull(added("layer", implementation)).lower((rows[0], rows[1]), *rows[2:], *vectors).compile()
    assert set(dict(hlo.traffic(program.as_text()).collectives)) == {"all-reduce"}
    (y, h), (dx, dresidual, *_) = got = program((rows[0], rows[1]), *rows[2:], *vectors)
    assert all(v.sharding.is_equivalent_to(rows[0].sharding, 3) for v in (y, h, dx, dresidual))
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-4), got,
        value_and_pull(written_out("layer"))(cotangents, *args),
    )  # fmt: skip


REFUSED = {
    "residual has dtype int32": lambda x: jn.add_rms_norm(x, x.astype("int32")),
    "residual is None. Without one, the norm alone does it: layer_norm": lambda x: jn.add_layer_norm(x, None),
    "x has dtype int32": lambda x: jn.add_rms_norm(x.astype("int32"), x),
    r"residual has shape \(2, 8\), and x has shape \(5, 8\)": lambda x: jn.add_layer_norm(x, x[:2]),
    "takes no where": lambda x: jn.add_layer_norm(x, x, where=x > 0, implementation="pallas"),
    "knows no axis_name": lambda x: jax.vmap(
        lambda x: jn.add_rms_norm(x, x, axis_name="i", implementation="pallas"), axis_name="i"
    )(x),
    "not float64 to float32": lambda x: jn.add_layer_norm(x, jnp.float64(x), implementation="pallas"),
    "holds 16384 features": lambda x: jn.add_layer_norm(
        *[jnp.ones((1, 2**14 + 1), "float32")] * 2, implementation="pallas"
    ),
    "implementation='cuda' is not known": lambda x: jn.add_layer_norm(x, x, implementation="cuda"),
    "Did you mean epsilon": lambda x: jn.add_rms_norm(x, x, eps=1e-6),
}


@pytest.mark.once
@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_fit_is_an_error_when_tracing(message):
    with jax.enable_x64(True), pytest.raises((TypeError, ValueError), match=message):
        jax.eval_shape(REFUSED[message], jnp.ones((5, 8), jnp.float32))

"""Where there is no kernel for rows: an error that says why, by whom it was named, and else what XLA makes of it."""

import re
import sys
from functools import partial
from types import ModuleType, SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxnorm as jn
from jaxnorm._core import kernels
from jaxnorm._core.kernels import partition, platforms

both = pytest.mark.parametrize("verb", [jn.layer_norm, jn.rms_norm])
X = jnp.ones((4, 6, 8))


def on_a(monkeypatch, kind):
    """As if the first device were such a GPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind=kind)])


def test_kernels_are_chosen_where_they_were_timed(monkeypatch):
    assert not kernels.chosen(4096)
    for kind, choice in (
        ("NVIDIA H100 80GB HBM3", True),
        ("NVIDIA H200", True),
        ("NVIDIA A100", False),
        ("gfx942", False),
    ):
        on_a(monkeypatch, kind)
        assert [kernels.chosen(n) for n in (7, 768, 8192, 8193)] == [choice, choice, choice, False]


def test_what_jax_lacks_is_passed_over(monkeypatch):
    """A Pallas backend that can't be imported: None takes XLA, and a name is an error."""
    for name in ("triton", "mosaic"):
        monkeypatch.setitem(sys.modules, f"jaxnorm._core.kernels.{name}", None)
        monkeypatch.delattr(kernels, name, raising=False)
    assert platforms._module("cuda") is platforms._module("tpu") is None
    on_a(monkeypatch, "NVIDIA H200")
    assert not kernels.chosen(96)
    monkeypatch.undo()
    for name in ("triton", "mosaic"):
        monkeypatch.setitem(sys.modules, f"jaxnorm._core.kernels.{name}", None)
        monkeypatch.delattr(kernels, name, raising=False)
    jax.clear_caches()
    x = jnp.cos(jnp.arange(24.0)).reshape(4, 6)
    np.testing.assert_array_equal(jn.layer_norm(x), jn.layer_norm(x, implementation="xla"))
    with pytest.raises(NotImplementedError, match="as far as this JAX compiles them"):
        export.export(jax.jit(named), platforms=["cuda"])(x)
    hidden = ModuleType("jax._src.dispatch")
    monkeypatch.setitem(sys.modules, "jax._src.dispatch", hidden)
    partition.devices_known(None)


def on_an_explicit_mesh():
    with jax.set_mesh(jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))):
        return jn.layer_norm(jax.device_put(X, P("data")), implementation="pallas")


def in_float64():
    with jax.enable_x64(True):
        return jn.layer_norm(X.astype(jnp.float64), implementation="pallas")


named = partial(jn.layer_norm, implementation="pallas")
REFUSED = {
    "where": (lambda: named(X, where=X > 0), "pallas' takes no where"),
    "axis_name": (lambda: jax.vmap(lambda x: named(x, axis_name="i"), axis_name="i")(X), "knows no axis_name"),
    "axis": (lambda: named(X, axis=1), "normalizes the last axes of x, in their order, not axes (1,) of 3"),
    "dtype": (in_float64, "is for float32, bfloat16 and float16, not float64"),
    "complex": (lambda: named(X.astype(jnp.complex64)), "is for float32, bfloat16 and float16, not complex64"),
    "empty": (lambda: named(X[:0]), "needs sizes that are known and not 0"),
    "width": (lambda: named(jnp.ones((1, 65537))), "holds 65536 features of a row at most"),
    "scale": (lambda: named(X, X[:1]), "wants a scale or bias along the features, and along leading axes of x"),
    "mesh": (on_an_explicit_mesh, "does not know meshes with explicit axes: use it within shard_map"),
    "name": (lambda: jn.rms_norm(X, implementation="triton"), "implementation='triton' is not known"),
    "spec": (
        lambda: jn.RMSNorm(implementation="triton").apply(jn.Affine(), None, X, train=True),
        "implementation='triton' is not known",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_named_kernel_cannot_serve_is_an_error_when_tracing(name):
    call, words = REFUSED[name]
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


@both
@pytest.mark.parametrize("derivative", [False, True])
def test_a_platform_without_kernels_is_an_error_when_lowering(verb, derivative):
    """When tracing, nobody knows yet what a program is for."""
    f = lambda x: verb(x, implementation="pallas").sum()
    traced = jax.jit(jax.grad(f) if derivative else f).trace(X)
    with pytest.raises(NotImplementedError, match="this program is compiled for cpu"):
        traced.lower()


@both
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_programs_with_kernels_are_exported_on_a_cpu(verb, platform):
    if platforms._module(platform) is None:
        pytest.skip(f"this JAX has no kernels for {platform}")
    x, vector = jnp.ones((77, 96), jnp.bfloat16), jnp.ones(96)

    def made(implementation):
        def run(g, *args):
            y, pull = jax.vjp(partial(verb, implementation=implementation), *args)
            return y, pull(g)

        # Who saves Triton's kernels says that it is known: other releases need not run them.
        checks = [export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")] if platform == "cuda" else []
        exported = export.export(jax.jit(run), platforms=[platform], disabled_checks=checks)(x, x, vector, vector)
        assert export.deserialize(exported.serialize()).platforms == (platform,)
        return exported.mlir_module()

    assert [made(name).count("stablehlo.custom_call @") for name in ("pallas", "xla")] == [2, 0]


def test_an_export_without_a_name_can_be_saved(monkeypatch):
    """Also on a GPU, where kernels are chosen: JAX saves Triton's for nobody who does not ask for it."""
    monkeypatch.setattr(kernels, "chosen", lambda features: True)
    x = jnp.cos(jnp.arange(24.0)).reshape(4, 6)
    exported = export.export(jax.jit(jn.layer_norm), platforms=["cuda", "cpu"])(x)
    np.testing.assert_allclose(exported.call(x), jn.layer_norm(x, implementation="xla"), rtol=1e-5, atol=1e-5)

"""What compiled programs send between devices: one collective each way, of vectors, however many devices there are."""

import jax
import jax.numpy as jnp
import pytest
from cases import optimized
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm as jn
from benchmarks import hlo
from benchmarks.speed import with_vjp

CHANNELS = 8
VECTOR = 4 * CHANNELS


def program(how, devices, masked=False, **options):
    """A batch norm of 16 examples on each device, and its backward pass."""
    mesh = jax.make_mesh((devices,), ("batch",), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,))
    spec = jn.BatchNorm(axis_name=None if how == "jit" else "batch", **options)
    params, state = spec.init(CHANNELS)

    def apply(x, scale, bias, where):
        return spec.apply(jn.Affine(scale, bias), state, x, train=True, where=where)

    x = jnp.ones((16 * devices, 14, 14, CHANNELS))
    args = (x, x, *params, jnp.ones((16 * devices, 14, 14, 1), bool) if masked else None)
    split = P("batch"), P("batch"), P(), P(), P("batch")
    if how == "jit":
        step, placed = with_vjp(apply), [NamedSharding(mesh, s) for s in split]
        args = [v if v is None else jax.device_put(v, s) for v, s in zip(args, placed, strict=True)]
    else:
        vma = how == "shard_map"
        moved = (P("batch"), P(), P()) if vma else (P("batch"),) * 3
        step = jax.shard_map(
            with_vjp(apply), mesh=mesh, in_specs=split, out_specs=(P("batch"), P(), moved), check_vma=vma
        )
    return hlo.traffic(optimized(step).lower(*args).compile().as_text())


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("how", ["shard_map", "shard_map without vma", "jit"])
def test_one_collective_each_way(how, masked):
    """Three vectors forward at most (count, mean, variance), two backward; one more if the pivot was poor."""
    few, many = (program(how, n, masked) for n in (2, 8))
    for found in few, many:
        assert found.collectives.keys() | found.collectives_in_conditionals.keys() == {"all-reduce"}
        assert found.collectives.total() <= 2
        # Under jit on a CPU, a running mean decides whether to look about 0: the first look is in that conditional.
        assert found.collectives.total() + found.collectives_in_conditionals.total() == 3
    assert few.collective_bytes == many.collective_bytes <= 5 * VECTOR


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_ghosts_within_a_share_are_normalized_where_they_are(masked):
    """One collective for running statistics, and none for y; that of scale and bias is any data-parallel layer's."""
    few, many = (program("shard_map without vma", n, masked, virtual_batch_size=4) for n in (2, 8))
    assert few.collectives == many.collectives == {"all-reduce": 1}
    assert few.collectives_in_conditionals == many.collectives_in_conditionals == {"all-reduce": 1}
    assert few.collective_bytes == many.collective_bytes == 3 * VECTOR


def test_ghosts_over_shares_take_one_collective_each_way():
    """Of as many vectors as a whole batch takes, for each ghost."""
    few, many = (program("shard_map", n, virtual_batch_size=32) for n in (2, 8))
    assert few.collectives == many.collectives == {"all-reduce": 2}
    assert few.collectives_in_conditionals == many.collectives_in_conditionals == {"all-reduce": 1}
    assert few.collective_bytes <= 4 * VECTOR
    assert many.collective_bytes <= 4 * 4 * VECTOR + 2 * VECTOR


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("spec", [jn.RMSNorm(), jn.LayerNorm()], ids=["rms", "layer"])
def test_norms_of_heads_over_devices_send_the_sum_for_their_scale_alone(kind, spec):
    """Queries (batch, time, heads, features): nothing forward, and y lies as x does; the guard asks all devices."""
    mesh = jax.make_mesh((4,), ("model",), devices=jax.devices()[:4], axis_types=(kind,))
    params, _ = spec.init(64)
    norm = lambda q, scale: spec.apply(params._replace(scale=scale), None, q, train=True)[0]
    pulled = lambda g, q, scale: jax.vjp(norm, q, scale)[1](g)
    with jax.set_mesh(mesh):
        q = jax.ShapeDtypeStruct((8, 256, 8, 64), jnp.float32, sharding=NamedSharding(mesh, P(None, None, "model")))
        scale = jax.ShapeDtypeStruct((64,), jnp.float32, sharding=NamedSharding(mesh, P()))
        forward = optimized(norm).lower(q, scale).compile()
        backward = optimized(pulled).lower(q, q, scale).compile()
    assert forward.output_shardings.is_equivalent_to(q.sharding, 4)
    asked = 0 if isinstance(spec, jn.RMSNorm) else 2
    assert hlo.traffic(forward.as_text()).collective_bytes <= asked
    found = hlo.traffic(backward.as_text())
    assert found.collectives.keys() == {"all-reduce"}
    assert found.collective_bytes <= 4 * 64 + asked

"""What compilers for TPU and GPU make of our programs: passes over the data and collectives, exactly. No timings.

Runs where these compilers are installed: `make compilers`.
"""

from functools import partial
from importlib.util import find_spec

import jax
import pytest
from jax.sharding import PartitionSpec as P

import jaxnorm as jn
from benchmarks import compiled
from benchmarks.cases import Case
from benchmarks.speed import with_vjp
from jaxnorm._core.kernels import WIDEST_SUM

CASES = {(case.kind, case.dtype): case for case in compiled.ALONE}
# Passes over x, forward and with the backward pass. What a pilot reads is what exceeds whole numbers.
UNITS = {
    "v6e": {
        ("batch", "float32"): (3.01, 8.01),
        ("batch", "bfloat16"): (3.01, 8.01),
        ("instance", "float32"): (3.06, 8.06),
        ("instance", "bfloat16"): (3.06, 8.06),
        ("group", "float32"): (3.06, 8.06),
        ("layer", "float32"): (3.10, 8.10),
        ("rms", "float32"): (3.01, 8.01),
    },
    "h100": {
        ("batch", "float32"): (3.01, 8.02),
        ("batch", "bfloat16"): (3.02, 8.05),
        ("instance", "float32"): (3.07, 8.08),
        ("layer", "float32"): (2.01, 8.10),
        ("rms", "float32"): (2.01, 8.03),
    },
}


def needs(target):
    plugin = "jax_cuda12_plugin" if target == "h100" else "libtpu"
    return pytest.mark.skipif(not find_spec(plugin), reason=f"no compiler for {target}: make compilers")


@pytest.mark.parametrize(
    ("target", "kind", "dtype"),
    [pytest.param(target, *row, marks=needs(target)) for target, rows in UNITS.items() for row in rows],
)
def test_passes_over_the_data(target, kind, dtype):
    programs = compiled.alone(CASES[kind, dtype], "jaxnorm", target)
    for program, most in zip(programs, UNITS[target][kind, dtype], strict=True):
        assert program.units <= most
        # A TPU puts 64 channels into 128 lanes, or the batch; the branch for a poor running mean has its own layout.
        assert program.temporary_units < (2.1 if (target, kind) == ("v6e", "batch") else 0.05)


@needs("h100")
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("verb", [jn.layer_norm, jn.rms_norm])
def test_rows_stay_in_registers_with_a_narrow_scale(verb, dtype, offset):
    """One kernel reads x and writes y."""
    from benchmarks.targets import program

    x, scale = jax.ShapeDtypeStruct((8192, 4096), dtype), jax.ShapeDtypeStruct((4096,), "bfloat16")
    found = program("h100", lambda x, s: verb(x, s, scale_offset=offset, implementation="xla"), (x, scale))
    assert found.units <= 2.01


@needs("v6e")
def test_between_convolutions_no_more_than_flax():
    case, kernel = compiled.BLOCKS[0]
    with jax.numpy_dtype_promotion("standard"):
        ours, flax = (compiled.block(case, kernel, library, "v6e")[1] for library in ("jaxnorm", "flax"))
    assert ours.units <= flax.units + 0.01


@pytest.mark.parametrize("how", compiled.HOW)
@pytest.mark.parametrize(("target", "devices"), [pytest.param(*row, marks=needs(row[0])) for row in compiled.SHARDED])
def test_one_collective_each_way(target, devices, how):
    forward, both = compiled.sharded(how, "jaxnorm", target, devices)
    assert (forward.collectives, both.collectives) == (1, 2)
    assert both.conditional_collectives <= 1
    # Vectors of 64 channels, which a TPU pads to 128: two each way.
    assert both.collective_bytes <= 2048


@needs("v5e")
@pytest.mark.parametrize("how", compiled.HOW)
def test_256_chips_move_what_4_do(how):
    few, many = (compiled.sharded(how, "jaxnorm", *row) for row in compiled.SHARDED[-2:])
    assert few == many


# Rows by kernels, by name: what the chip holds is read once forward, x and g once backward. A GPU writes partial sums.
KERNELS = {"v5e": (2.01, 5.01), "v6e": (2.01, 5.01), "v5p": (2.01, 5.01), "h100": (2.01, 5.27)}


@pytest.mark.parametrize("target", [pytest.param(target, marks=needs(target)) for target in KERNELS])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_passes_of_kernels_for_rows(kind, dtype, target):
    for program, most in zip(
        compiled.alone(CASES[kind, dtype], "jaxnorm pallas", target), KERNELS[target], strict=True
    ):
        assert program.units <= most
        assert program.temporary_units < (0.3 if target == "h100" else 0.05)


@pytest.mark.parametrize("target", [pytest.param(target, marks=needs(target)) for target in KERNELS])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_passes_of_kernels_that_add_a_residual(kind, dtype, target):
    """x, residual → y, h is four; h, g, the cotangent of h → dx is four more, and sums of dscale and dbias."""
    most = 4.01, 8.27 if target == "h100" else 8.01
    for program, units in zip(compiled.residual(CASES[kind, dtype], "jaxnorm pallas", target), most, strict=True):
        assert program.units <= units


@needs("v5e")
@pytest.mark.parametrize("width", [1, 96, 1000, 20000, 32768, 65536])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernels_for_a_tpu_fit_into_its_memory(width, dtype):
    """Mosaic says so when it compiles. Rows beyond the backward kernel's features take the formula there."""
    compiled.alone(Case("layer", (3001, width), dtype), "jaxnorm pallas", "v5e")
    if width < 20000:
        compiled.residual(Case("layer", (3001, width), dtype), "jaxnorm pallas", "v5e")


@needs("v5e")
def test_kernels_that_add_a_residual_fit_into_it_to_their_widest():
    """A stream in float32 beside x in bfloat16 is the largest: rows are stored together by sixteens."""
    x, residual, vector = (
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (
            ((3001, WIDEST_SUM), "bfloat16"),
            ((3001, WIDEST_SUM), "float32"),
            ((WIDEST_SUM,), "float32"),
        )
    )

    def both(cotangents, *args):
        results, pull = jax.vjp(partial(jn.add_layer_norm, implementation="pallas"), *args)
        return results, pull(cotangents)

    from benchmarks.targets import program

    program("v5e", both, ((x, residual), x, residual, vector, vector))


@pytest.mark.parametrize("target", [pytest.param(target, marks=needs(target)) for target in ("v6e", "h100")])
@pytest.mark.parametrize("how", compiled.HOW)
def test_sharded_rows_are_not_gathered(target, how):
    """dscale and dbias are one sum over all devices. A TPU's partitioner knows no rules: JAX says what to do."""
    if (target, how) == ("v6e", "jit"):
        with pytest.raises(NotImplementedError, match="wrap the call in a shard_map"):
            compiled.sharded_rows(how, target)
        return
    program = compiled.sharded_rows(how, target)
    assert program.collectives == 1
    assert program.collective_bytes <= 2 * 4 * 4096


# Norms of each example, of a batch over four chips under plain jit.
EXAMPLES = {
    "instance": jn.InstanceNorm(),
    "group": jn.GroupNorm(groups=4),
    "layer": jn.LayerNorm(),
    "rms": jn.RMSNorm(),
    "without parameters": jn.LayerNorm(axis=(1, 2, 3), use_scale=False, use_bias=False),
}


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("target", [pytest.param(target, marks=needs(target)) for target in ("v6e", "h100")])
def test_norms_of_each_example_send_the_sums_of_their_parameters_alone(target, name, masked):
    """Dscale and dbias are sums over examples; whether a pivot is poor is a matter of each device."""
    from benchmarks.targets import mesh_of, program

    spec, mesh = EXAMPLES[name], mesh_of(target, batch=4)
    x, vector = jax.ShapeDtypeStruct((32, 28, 28, 128), "float32"), jax.ShapeDtypeStruct((128,), "float32")
    mask = jax.ShapeDtypeStruct((32, 28, 28, 1), "bool") if masked else None
    scale, bias = (vector if used else None for used in (spec.use_scale, spec.use_bias))

    def apply(x, scale, bias, where):
        return spec.apply(jn.Affine(scale, bias), None, x, train=True, where=where)

    args = x, scale, bias, mask
    split = [None if v is None else P("batch") if v is not vector else P() for v in args]
    forward = program(target, apply, args, tuple(split), mesh)
    both = program(target, with_vjp(apply), (x, *args), (P("batch"), *split), mesh)
    assert (forward.collectives, forward.conditional_collectives) == (0, 0)
    assert (both.collectives, both.conditional_collectives) == (int(spec.use_scale), 0)

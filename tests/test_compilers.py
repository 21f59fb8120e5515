"""What compilers for TPU and GPU make of our programs: passes over the data and collectives, exactly. No timings.

Runs where these compilers are installed: `make compilers`.
"""

from importlib.util import find_spec

import jax
import pytest

from benchmarks import compiled

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

"""A choice by size is made when a program is lowered: of all the data that it has by then."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import mesh
from jax import export
from jax.sharding import PartitionSpec as P

import jaxnorm as jn
from jaxnorm._core.sizes import by_size


def which(x):
    """1 for up to 64 bytes, 2 for more; x is added, for the result to depend on it."""
    return by_size(x, 64, lambda x: x + 1, lambda x: x + 2, x) - x


@pytest.mark.parametrize(
    ("shape", "dtype", "choice"),
    [((16,), "float32", 1), ((17,), "float32", 2), ((32,), "bfloat16", 1), ((), "float32", 1)],
)
def test_the_limit_is_in_bytes(shape, dtype, choice):
    x = jnp.zeros(shape, dtype)
    for run in (which, jax.jit(which)):
        np.testing.assert_array_equal(run(x), choice)


def test_mapped_data_count_as_a_whole():
    np.testing.assert_array_equal(jax.vmap(which)(jnp.zeros((4, 4))), 1)
    np.testing.assert_array_equal(jax.vmap(which)(jnp.zeros((5, 4))), 2)
    np.testing.assert_array_equal(jax.vmap(jax.vmap(which, in_axes=1))(jnp.zeros((3, 2, 4))), 2)
    np.testing.assert_array_equal(jax.jit(jax.vmap(jax.jit(which)))(jnp.zeros((5, 4))), 2)


def test_a_shard_counts_by_itself():
    sharded = jax.shard_map(which, mesh=mesh(data=2), in_specs=P("data"), out_specs=P("data"))
    np.testing.assert_array_equal(sharded(jnp.zeros(32)), 1)
    np.testing.assert_array_equal(sharded(jnp.zeros(34)), 2)


def test_what_is_not_known_is_large():
    (n,) = export.symbolic_shape("n")
    exported = export.export(jax.jit(which))(jax.ShapeDtypeStruct((n,), jnp.float32))
    np.testing.assert_array_equal(exported.call(jnp.zeros(3)), 2)


def test_norms_of_few_data_have_no_branch_and_those_of_many_look_again_where_they_have_to():
    few, many = jnp.ones((64, 16)), jnp.ones((2000, 64, 16))
    program = lambda f, x: jax.jit(f).lower(x).compile().as_text()
    assert "while" not in program(jn.layer_norm, few)
    assert "conditional" not in program(jn.layer_norm, few)
    assert "while" in program(jax.vmap(jn.layer_norm), many)

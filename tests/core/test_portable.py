"""What is traced for converters stays apart from what is traced for devices, and ends with its context."""

import jax
import jax.numpy as jnp
import pytest

from jaxnorm._core import portable

X = jnp.ones((2, 3))


@jax.jit
def traced(x):
    return x + float(portable.is_portable())


def test_the_context_is_part_of_the_keys_of_caches():
    for _ in range(2):
        assert (traced(X) == 1).all()
        with portable.portable_programs():
            assert (traced(X) == 2).all()
    assert not portable.is_portable()


def test_it_ends_where_something_is_raised():
    with pytest.raises(ValueError, match="within"), portable.portable_programs():
        raise ValueError("within")
    assert not portable.is_portable()

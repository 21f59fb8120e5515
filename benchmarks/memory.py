"""Bytes kept between the forward and the backward pass, over the bytes of x."""

from importlib.util import find_spec

import jax

from benchmarks import torch_norms
from benchmarks.libraries import installed


def kept(build, case):
    """What a jitted norm keeps, as a multiple of the bytes of x; None where the library lacks it."""
    if (apply := build(case)) is None:
        return None
    _, (x, scale, bias, *state) = case.data()
    compiled = jax.jit(lambda *learned: apply(*learned, *state)[0])
    _, pull = jax.vjp(compiled, x, scale, bias)
    return sum(leaf.nbytes for leaf in jax.tree.leaves(pull)) / x.nbytes


def measure(case):
    """The multiple of each library."""
    found = {name: kept(build, case) for name, build in installed().items()}
    if find_spec("torch"):
        found["torch"] = torch_norms.kept(case)
    return found

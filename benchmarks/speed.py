"""Time beside other libraries, as ratios within one run."""

from dataclasses import dataclass

import jax

from benchmarks import torch_norms
from benchmarks.libraries import FLAX, installed
from benchmarks.timing import Times, race, waiting

OTHERS = ("flax stable", "haiku", "equinox", "torch")
FLOOR = "floor"
"""What reading and writing memory takes: x + 1 forward, x + g besides with backward."""


@dataclass(frozen=True)
class Row:
    """One case: times of the forward pass, and with the backward pass."""

    case: object
    base: str
    forward: Times
    both: Times


def with_vjp(apply, learned=3):
    """(cotangent, arguments) -> y, the running statistics, and the cotangents of the first few: x, scale and bias.

    The cotangent waits for y, as it does for a loss.
    """

    def both(g, *args):
        y, pull, new = jax.vjp(lambda *by: apply(*by, *args[learned:]), *args[:learned], has_aux=True)
        y, g = jax.lax.optimization_barrier((y, g.astype(y.dtype)))
        return y, new, pull(g)

    return both


def _floors(g, x):
    once = waiting(lambda x: x + 1, x)
    add = waiting(lambda x, g: x + g, x, g)
    return once, lambda: (once(), add())


def measure(case, rounds):
    """A row of the table."""
    g, args = case.data()
    forward, both = {}, {}
    for name, build in installed().items():
        if (apply := build(case)) is not None:
            forward[name], both[name] = waiting(apply, *args), waiting(with_vjp(apply), g, *args)
    if torch := torch_norms.contestants(case):
        forward["torch"], both["torch"] = torch
    forward[FLOOR], both[FLOOR] = _floors(g, args[0])
    # Flax has no group norm for channels first.
    base = FLAX if FLAX in forward else "haiku"
    return Row(case, base, race(forward, rounds), race(both, rounds))

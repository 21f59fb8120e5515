"""Times side by side: all contestants in turn, in random order, round after round."""

import random
import time
from dataclasses import dataclass

import jax
import numpy as np

_SLICE = 0.02
"""Seconds that a contestant runs before the next one's turn."""


@dataclass(frozen=True)
class Times:
    """Seconds per call of each contestant in each round."""

    seconds: dict[str, list[float]]

    def median(self, name):
        return float(np.median(self.seconds[name]))

    def ratio(self, name, base):
        """The ratio of the medians."""
        return self.median(name) / self.median(base)

    def spread(self, name, base):
        """The quartiles of the ratios within a round."""
        ratios = np.divide(self.seconds[name], self.seconds[base])
        return tuple(float(q) for q in np.quantile(ratios, (0.25, 0.75)))


def _seconds(run, calls):
    started = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - started) / calls


def race(contestants, rounds):
    """Times of functions without arguments, each of which waits for its result."""
    calls = {}
    for name, run in contestants.items():
        run()
        calls[name] = max(1, round(_SLICE / _seconds(run, 2)))
    seconds = {name: [] for name in contestants}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(contestants), len(contestants)):
            seconds[name].append(_seconds(contestants[name], calls[name]))
    return Times(seconds)


def waiting(f, *args):
    """A compiled function as a contestant."""
    compiled = jax.jit(f).lower(*args).compile()
    return lambda: jax.block_until_ready(compiled(*args))

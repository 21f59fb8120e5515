"""Recorded values of other libraries: the scripts beside them say how they were made."""

from functools import cache
from pathlib import Path

import numpy as np


@cache
def recorded(name):
    """All arrays of a file, by name."""
    with np.load(Path(__file__).parent / "recorded" / f"{name}.npz") as arrays:
        return dict(arrays)


def under(name, prefix):
    """Those of one case, by what comes after its name."""
    return {key.removeprefix(f"{prefix}/"): v for key, v in recorded(name).items() if key.startswith(f"{prefix}/")}


def close(got, want, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(got), want, rtol=tolerance, atol=tolerance)

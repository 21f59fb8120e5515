"""Messages about what y is to be, and how it is to be computed."""

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array


def implementation(value: Any, who: str, unserved: str | None = None) -> None:
    """Raises unless the implementation is known by its name, or None; and for a kernel that says why it can't serve."""
    if value not in (None, "xla", "pallas"):
        raise ValueError(f"{who}: implementation={value!r} is not known. It is None (to choose), 'xla' or 'pallas'.")
    if value == "pallas" and unserved:
        raise ValueError(
            f"{who}: implementation='pallas' {unserved}. Use implementation='xla', or None to have it chosen."
        )


def without_kernels(value: Any, who: str) -> None:
    """Raises where a kernel is named for a norm that has none, or an implementation that is not known."""
    implementation(value, who, "is for layer and RMS norm")


def dtype(value: Any, who: str) -> Any:
    """The dtype that any of its names stands for, or None."""
    if value is None:
        return None
    try:
        found = jnp.dtype(value)
    except TypeError:
        raise TypeError(f"{who}: dtype={value!r} is not a dtype, as jnp.bfloat16 is.") from None
    if not jnp.issubdtype(found, jnp.inexact):
        raise TypeError(f"{who}: dtype={found} is not floating point or complex. It is that of y.")
    return found


def output_dtype(value: Any, x: Array, who: str) -> Any:
    """The dtype of y: that of `x` where it is not said."""
    found = dtype(value, who)
    if found is None:
        return x.dtype
    if jnp.iscomplexobj(x) and not jnp.issubdtype(found, jnp.complexfloating):
        raise TypeError(f"{who}: dtype={found} and x has dtype {x.dtype}: y would lose its imaginary part.")
    return jax.dtypes.canonicalize_dtype(found)


def scale_offset(value: Any, who: str) -> float:
    """The number that is added to the scale, which the program is made for."""
    if isinstance(value, Tracer):
        raise TypeError(f"{who}: scale_offset is traced, but it is a part of the program. A scale may be traced.")
    return real_number(value, f"{who}: scale_offset", " 1.0 makes the factor 1 + scale.")


def real_number(value: Any, who: str, hint: str = "") -> float:
    """A finite real number, which the program is made for."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real | np.number) or not math.isfinite(value):
        raise TypeError(f"{who}={value!r} is not a finite real number.{hint}")
    return float(value)

"""Messages about arguments that only some norms take."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxnorm._checks.arguments import is_whole
from jaxnorm._types import SingularVectors


def real(x: Array, who: str, what: str) -> None:
    """Raises unless the data are real, for the sake of a function that is."""
    if jnp.iscomplexobj(x):
        raise TypeError(f"{who}: the data have dtype {x.dtype}, and {what} is for real numbers.")


def window(size: Any, who: str) -> int:
    """The number of channels in a window."""
    if not is_whole(size, 1):
        raise ValueError(f"{who}: size={size!r} is not a positive int, the number of channels in a window.")
    return int(size)


def order(value: Any, who: str) -> float:
    """The order of a norm of vectors, which the program is made for."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not value > 0:
        raise ValueError(f"{who}: order={value!r} is not a number above 0. 2 is Euclid's, math.inf takes the largest.")
    return float(value)


def steps(value: Any, state: Any, who: str) -> int:
    """The number of steps, which the program is made for, from a state or without one."""
    if not is_whole(value, 0):
        raise ValueError(f"{who}: steps={value!r} is not an int of at least 0. It is static: 1 in training, 0 after.")
    if value == 0 and state is None:
        raise ValueError(f"{who}: steps=0 uses the vectors of a state, and state is None. Take that of a call before.")
    return int(value)


def singular_vectors(state: Any, u: Sequence[int], v: Sequence[int], who: str) -> None:
    """Raises unless a state, if there is one, holds singular vectors of these shapes."""
    if state is None:
        return
    if not isinstance(state, SingularVectors):
        raise TypeError(f"{who}: state is a {type(state).__name__}, not SingularVectors, as a call without one gives.")
    if np.shape(state.u) != tuple(u) or np.shape(state.v) != tuple(v):
        raise ValueError(
            f"{who}: state.u and state.v have shapes {np.shape(state.u)} and {np.shape(state.v)}; those of this kernel "
            f"have {tuple(u)} and {tuple(v)}. A state belongs to one kernel and output_axis."
        )


def needs_state(state: Any, who: str) -> None:
    """Raises where running statistics are missing that training needs, too."""
    if state is None:
        raise ValueError(f"{who}: state is None. Without running statistics it is batch norm: jaxnorm.batch_norm.")


def same_style(style: Array, content: Array, positions: Sequence[int], who: str) -> None:
    """Raises unless a style has the channels of the content, and its examples or one."""
    if jnp.iscomplexobj(style) and not jnp.iscomplexobj(content):
        raise TypeError(f"{who}: style has dtype {style.dtype}, and content has {content.dtype}: y would lose a part.")
    fits = style.ndim == content.ndim and all(
        a in positions or s in (n, 1) for a, (s, n) in enumerate(zip(style.shape, content.shape, strict=True))
    )
    if not fits:
        raise ValueError(
            f"{who}: style has shape {style.shape}, and content has shape {content.shape}. They may differ along "
            f"axes {tuple(positions)} of positions; elsewhere the style is as large, or 1."
        )


def given(value: Any, who: str, name: str) -> Any:
    """An argument that can't be left out."""
    if value is None:
        raise TypeError(f"{who}: {name} is None. It is a number, or an array that broadcasts to the data.")
    return value


def more_data(count: Any, ddof: int, who: str) -> None:
    """Raises where ddof leaves no data, as far as their number is known."""
    if isinstance(count, int) and 0 < count <= ddof:
        raise ValueError(f"{who}: ddof={ddof} takes as much off as there are data, {count} of them.")

"""Flags that choose a program, from every way to say them, and messages about those that do not."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def train(value: Any, who: str) -> bool:
    """The flag `train`, which is True or False."""
    if not isinstance(value, bool | np.bool_ | Tracer):
        raise TypeError(f"{who}: train={value!r} is not True or False.")
    return flag(value, who, "train")


def field_flag(value: Any, who: str) -> None:
    """Raises unless a field that is True or False is one of them: text would be neither."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{who}={value!r} is not True or False.")


def flag(value: Any, who: str, name: str) -> bool:
    """A flag that is known when tracing, since it chooses the program."""
    if value is None:
        raise ValueError(f"{who}: {name} is given nowhere. Give it to the constructor or to the call: True or False.")
    if isinstance(value, Tracer):
        raise TypeError(
            f"{who}: {name} is traced, but it chooses the program: use jax.jit(..., static_argnames='{name}')."
        )
    return bool(value)


def mode(training: Any, use_running_average: Any, who: str) -> bool | None:
    """Whether to train, from either way to say it; None where neither is said."""
    if training is not None and use_running_average is not None:
        raise ValueError(
            f"{who}: train={training} and use_running_average={use_running_average} say the same thing twice. Give one."
        )
    if use_running_average is not None:
        return not flag(use_running_average, who, "use_running_average")
    return None if training is None else train(training, who)


def training(value: Any, train_value: Any, who: str, name: str) -> bool:
    """Whether to train, by `train` or by the name that another library has for it."""
    if value is not None and train_value is not None:
        raise ValueError(f"{who}: train={train_value} and {name}={value} say the same thing twice. Give one.")
    return flag(train_value if value is None else value, who, name)


def ignored_flag(value: Any, who: str, name: str) -> None:
    """Raises where a mask is passed where the flag goes. The flag has no effect while statistics are recalibrated."""
    if value is not None and (np.shape(value) or jnp.result_type(value) != jnp.bool_):
        raise TypeError(
            f"{who}: {name} has shape {np.shape(value)} and dtype {jnp.result_type(value)}: it is True or False. Give "
            f"a mask by its name."
        )

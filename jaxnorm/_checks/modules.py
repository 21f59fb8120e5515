"""Messages about Flax modules that are made or called in a way that does not fit."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def spec(value: Any, who: str) -> None:
    """Raises unless it is a norm, and not its class or what should come after it."""
    if isinstance(value, type):
        raise TypeError(f"{who}: spec={value!r} is not a spec: write {value.__name__}().")
    name = type(value).__name__
    if any(base.__module__.startswith("flax.") for base in type(value).__mro__):
        same = name if name in ("BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm") else "BatchNorm"
        raise TypeError(f"{who}: spec is {name}, a module of Flax, not a spec: write jaxnorm.{same}(...).")
    if not hasattr(value, "apply"):
        raise TypeError(f"{who}: spec={value!r} is not a spec, as jaxnorm.BatchNorm() is.")


def spec_classes(values: Any, base: type) -> Any:
    """Classes that a configuration may name."""
    if not isinstance(values, list | tuple) or not all(isinstance(v, type) and issubclass(v, base) for v in values):
        raise TypeError(f"from_dict: classes={values!r} is not a list of subclasses of specs of jaxnorm.")
    return values


def given_twice(spec: Any, who: str, **values: Any) -> None:
    """Raises where a scale or bias is given in the call, and the spec learns one."""
    for name, value in values.items():
        if value is not None and getattr(spec, f"use_{name}", False):
            raise ValueError(
                f"{who}: {name} is given in the call, and {type(spec).__name__} learns one. Use "
                f"{type(spec).__name__}(use_{name}=False)."
            )


def key(rngs: Any, who: str) -> Any:
    """A random key for an initializer."""
    if rngs is None:
        raise ValueError(f"{who}: initializers need a random key. Give rngs=nnx.Rngs(0).")
    return rngs.params()


def same_features(spec: Any, given: Any, shape: Sequence[Any], who: str) -> None:
    """Raises unless data of this shape have as many features as the module was made for."""
    found = spec.features(shape) if hasattr(spec, "features") else given
    if tuple(np.atleast_1d(found)) != tuple(np.atleast_1d(given)):
        raise ValueError(f"{who}: it was made for {given} features, but x has shape {shape}, with {found} of them.")

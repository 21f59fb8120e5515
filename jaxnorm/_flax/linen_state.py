"""Running statistics in variables of flax.linen."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flax import linen as nn

from jaxnorm._types import ADDED, fields, running_fields, running_of, uncounted


def has_spec(module: nn.Module) -> bool:
    """Whether a module is a `Norm`, and not one that has a spec to make norms of."""
    return getattr(type(module), "_is_norm", False)


@contextmanager
def as_frozen(module: nn.Module) -> Iterator[None]:
    """A norm whose statistics stay, also while others are recalibrated."""
    if is_recalibrating(module) and module.is_mutable_collection("batch_stats"):
        module.put_variable("batch_stats", "seen", uncounted(module.get_variable("batch_stats", "seen")))
    object.__setattr__(module, "_frozen", True)
    try:
        yield
    finally:
        object.__delattr__(module, "_frozen")


def is_recalibrating(module: nn.Module) -> bool:
    """Whether data are to replace the statistics of a module: what it is told of training has no effect then."""
    here = module.has_variable("batch_stats", "seen") and not module.has_variable("batch_stats", "before")
    return here and not hasattr(module, "_frozen")


def with_added(module: nn.Module, state: Any) -> Any:
    """Running statistics, with a `weight_sum` that is there, and what `jn.accumulate` or `jn.recalibrate` has added."""
    known = ("weight_sum", *(() if hasattr(module, "_frozen") else ADDED))
    names = [name for name in known if module.has_variable("batch_stats", name)]
    added = {name: module.get_variable("batch_stats", name) for name in names}
    return running_of({**running_fields(state), **added}) if added else state


def write(module: nn.Module, state: Any) -> None:
    """Sets the variables of a state. A field that is None is written only over a variable that is there."""
    for name, value in fields(state).items():
        old = module.get_variable("batch_stats", name)
        if value is not None or old is not None:
            # Where it lies on a mesh, or which axis it was stacked along, is written in a box around it.
            boxed = nn.meta.replace_boxed(old, value)
            module.put_variable("batch_stats", name, boxed)

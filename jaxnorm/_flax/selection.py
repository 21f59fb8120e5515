"""Which norms of a Flax model are meant: by class, by place, or by a function of both."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Select = type | tuple[type, ...] | str | Callable[[tuple[Any, ...], Any], bool] | None
"""None for norms with running statistics; classes of modules or of specs; a place in the model; or a function."""


def is_selected(select: Select, path: Sequence[Any], module: Any) -> bool:
    """Whether a norm, of linen or nnx, at this place in a model is meant."""
    if select is None:
        return has_running_stats(module)
    if isinstance(select, str):
        place = select.replace("/", ".").split(".")
        return [str(name) for name in path][: len(place)] == place
    if isinstance(select, type | tuple):
        spec = getattr(module, "spec", None)
        return isinstance(module, select) or isinstance(getattr(spec, "spec", spec), select)
    if not callable(select):
        raise TypeError(
            f"select={select!r} is none of None, a class or several, a place, and a function of place and norm."
        )
    return bool(select(tuple(path), module))


def has_running_stats(module: Any) -> bool:
    """Whether a norm of linen, bound to its variables, or of nnx has running statistics."""
    if hasattr(module, "variables"):
        return "batch_stats" in module.variables
    return getattr(module, "mean", None) is not None


def nothing_selected(who: str, select: Select, places: Iterable[Sequence[Any]]) -> str:
    """A message where no norm is meant, with those that there are."""
    listed = ", ".join(".".join(map(str, path)) or "the model itself" for path in places) or "none"
    what = "norms with running statistics" if select is None else f"norms that select={select!r} means"
    return f"{who}: the model has no {what}. Its norms are: {listed}."

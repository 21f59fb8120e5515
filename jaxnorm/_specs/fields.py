"""Fields of specs, numbers or structure, and the pytree that a class makes of them."""

import dataclasses
import inspect
from typing import Any

import jax

from jaxnorm import _checks


def leaf(*, default: Any = dataclasses.MISSING) -> Any:
    """A field of a spec that is a number, and part of the pytree: `jit` takes it as data, `vmap` and `grad` reach it.

    Every other field of a subclass is structure: known when tracing, compared and hashed.

    Args:
        default: the number, or an array of any shape; without it the field has to be given.

    Returns:
        A field = what a dataclass makes of the annotation.

    >>> class Scaled(jn.BatchNorm):
    ...     factor: float = jn.leaf(default=2.0)
    >>> len(jax.tree.leaves(Scaled()))  # momentum, epsilon, factor
    3
    """
    return dataclasses.field(default=default, metadata={"leaf": True})


def is_leaf(field: dataclasses.Field) -> bool:
    return "leaf" in field.metadata


def _keep_kinds(cls: type) -> None:
    """Fields of bases that a class declares again stay what they are there, a number or structure."""
    known = {f.name: f for base in cls.__mro__[1:] if dataclasses.is_dataclass(base) for f in dataclasses.fields(base)}
    annotated = inspect.get_annotations(cls)
    for name, field in known.items():
        if name in vars(cls) and name not in annotated:
            raise TypeError(
                f"{cls.__name__}.{name} overrides a field without an annotation, and would be none. Write {name}: "
                f"{getattr(field.type, '__name__', field.type)} = ..., or set it in the constructor."
            )
        if name not in annotated:
            continue
        default = vars(cls).get(name, dataclasses.MISSING)
        if isinstance(default, dataclasses.Field):
            if is_leaf(default) != is_leaf(field):
                kinds = ("a leaf", "static") if is_leaf(field) else ("static", "a leaf")
                raise TypeError(f"{cls.__name__}.{name} is {kinds[0]} in its base class, and can't be {kinds[1]} here.")
        elif is_leaf(field):
            setattr(cls, name, leaf(default=default))


def make_pytree(cls: Any) -> None:
    """Makes a class a frozen dataclass, and a pytree."""
    _keep_kinds(cls)
    # It changes the class in place: the one that is being defined.
    dataclasses.dataclass(frozen=True, kw_only=True, eq=False)(cls)
    cls.__init__ = _checks.in_other_words(cls.__init__)
    cls._numbers = tuple(f.name for f in dataclasses.fields(cls) if is_leaf(f))
    cls._static = tuple(f.name for f in dataclasses.fields(cls) if not is_leaf(f))

    def structure(spec: Any) -> tuple[Any, ...]:
        return tuple(getattr(spec, name) for name in cls._static)

    def flatten(spec: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(spec, name) for name in spec._leaves()], structure(spec)

    def flatten_with_keys(spec: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return [(jax.tree_util.GetAttrKey(name), getattr(spec, name)) for name in spec._leaves()], structure(spec)

    def unflatten(structure: Any, leaves: Any) -> Any:
        # Not by the constructor: JAX unflattens with placeholders.
        spec = object.__new__(cls)
        vars(spec).update(zip(cls._static, structure, strict=True))
        vars(spec).update(zip(spec._leaves(), leaves, strict=True))
        return spec

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)

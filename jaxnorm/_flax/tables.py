"""Names of norms in Flax's tables of a model, which are those of classes."""

from typing import Any

from jaxnorm._specs.frozen import FrozenNorm


def class_named_by_spec(module: Any) -> type:
    """The class of a `Norm`, by the name of its spec: `BatchNorm`, or `frozen BatchNorm`."""
    spec, frozen = module.spec, ""
    if isinstance(spec, FrozenNorm):
        spec, frozen = spec.spec, "frozen "
    return type(f"{frozen}{type(spec).__name__}", (type(module),), {})

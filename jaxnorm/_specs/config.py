"""Specs as dictionaries of plain values, for configuration files."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm import _checks
from jaxnorm._specs.base import Value
from jaxnorm._specs.between import BatchInstanceNorm, BatchRenorm, SwitchableNorm
from jaxnorm._specs.evo import EvoNormB0, EvoNormS0
from jaxnorm._specs.frozen import FrozenNorm
from jaxnorm._specs.lengths import DynamicTanh, SimpleNorm, UnitNorm
from jaxnorm._specs.norms import BatchNorm, GroupNorm, Identity, InstanceNorm, LayerNorm, RMSNorm
from jaxnorm._specs.responses import FilterResponseNorm, GlobalResponseNorm, LocalResponseNorm
from jaxnorm._specs.scaler import FeatureScaler

_CLASSES = (
    BatchInstanceNorm, BatchNorm, BatchRenorm, DynamicTanh, EvoNormB0, EvoNormS0, FeatureScaler, FilterResponseNorm,
    FrozenNorm, GlobalResponseNorm, GroupNorm, Identity, InstanceNorm, LayerNorm, LocalResponseNorm, RMSNorm,
    SimpleNorm, SwitchableNorm, UnitNorm,
)  # fmt: skip
_YAML = "YAML reads 1e-5 as text, and 1.0e-5 as a number."


def to_dict(spec: Any) -> dict[str, Any]:
    """A spec in plain values, for JSON or YAML: its class, and all of its fields by name.

    from_dict(to_dict(spec)) = spec

    Args:
        spec: a norm, a frozen one, or a feature scaler, of jaxnorm or a subclass. Its numbers may be arrays of any
            shape and dtype: they become mappings of `array` and `dtype`.

    Returns:
        A dictionary of strings, numbers, lists, None and dictionaries.

    Raises:
        TypeError: it is no spec of jaxnorm; a number in it is traced; or a field is none of these, as an `axis_name`
            that is no string.

    >>> jn.to_dict(jn.Identity(use_bias=False))  # doctest: +NORMALIZE_WHITESPACE
    {'class': 'Identity', 'use_scale': True, 'use_bias': False, 'scale_offset': 0.0, 'dtype': None,
    'implementation': None, 'channel_axis': -1}
    """
    if not isinstance(spec, Value):
        raise TypeError(f"to_dict: {spec!r} is not a spec of jaxnorm, or a subclass of one.")
    names = (*spec._static, *spec._numbers)
    return {"class": type(spec).__name__, **{name: _plain(getattr(spec, name), name) for name in names}}


def from_dict(config: Mapping[str, Any], *, classes: Sequence[type] = ()) -> Any:
    """The spec that a dictionary says, as `to_dict` makes it or as somebody wrote it.

    from_dict(to_dict(spec)) = spec

    Args:
        config: `class`, and fields by name; fields that are left out have their defaults. A number may be a list, for
            arrays of any shape.
        classes: subclasses of yours that it may name, besides those of jaxnorm.

    Returns:
        The spec.

    Raises:
        ValueError: there is no class, or none of this name. TypeError: the class has no such field, or a number is
            text, as YAML reads 1e-5.

    >>> jn.from_dict({"class": "GroupNorm", "groups": 4}) == jn.GroupNorm(groups=4)
    True
    """
    known = {cls.__name__: cls for cls in (*_CLASSES, *_checks.spec_classes(classes, Value))}
    if not isinstance(config, Mapping):
        raise TypeError(f"from_dict: {config!r} is not a mapping of fields, as {{'class': 'BatchNorm'}}.")
    name, fields = config.get("class"), {key: value for key, value in config.items() if key != "class"}
    cls = _checks.one_of(name, known, "from_dict: class")
    for field in fields:
        _checks.one_of(field, (*cls._static, *cls._numbers), f"from_dict: {name} has no field", TypeError)
    made = {f: _structure(v) for f, v in fields.items() if f in cls._static}
    for field in fields.keys() & set(cls._numbers):
        nested = cls is FrozenNorm and field == "spec"
        value, who = fields[field], f"from_dict: {name}.{field}"
        made[field] = from_dict(value, classes=classes) if nested else _number(value, who)
    return cls(**made)


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, Value):
        return to_dict(value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, tuple):
        return [_plain(v, name) for v in value]
    if isinstance(value, np.dtype):
        return value.name
    array = _checks.known(value) if isinstance(value, jax.Array | np.ndarray | np.generic) else None
    if array is None or np.iscomplexobj(array):
        raise TypeError(
            f"to_dict: {name}={value!r} can't be written down: it is traced, or no real number and no text."
        )
    wide = array if array.dtype.kind in "iu" else array.astype(np.float64)
    return {"array": wide.tolist(), "dtype": array.dtype.name}


def _number(value: Any, who: str) -> Any:
    """A number that a field holds, or an array of numbers."""
    if isinstance(value, str):
        raise TypeError(f"{who}={value!r} is text. {_YAML}")
    if isinstance(value, Mapping):
        if value.keys() != {"array", "dtype"}:
            raise TypeError(f"{who}={dict(value)!r} is not a number: an array has the entries array and dtype.")
        dtype = jnp.dtype(value["dtype"])
        # JAX may have no such wide numbers, which were some of NumPy then.
        return (jnp if jax.dtypes.canonicalize_dtype(dtype) == dtype else np).asarray(
            _numeric(value["array"], who), dtype
        )
    return jnp.asarray(_numeric(value, who), jnp.float32) if isinstance(value, list) else value


def _numeric(value: Any, who: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{who}={value!r} are not numbers. {_YAML}")
    return array


def _structure(value: Any) -> Any:
    """Lists as tuples, which specs have for them, however deep."""
    return tuple(map(_structure, value)) if isinstance(value, list) else value

"""Specs as dictionaries of plain values, for configuration files."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm import _checks
from jaxnorm._specs.base import Value
from jaxnorm._specs.frozen import FrozenNorm
from jaxnorm._specs.norms import BatchInstanceNorm, BatchNorm, GroupNorm, Identity, InstanceNorm, LayerNorm, RMSNorm
from jaxnorm._specs.scaler import FeatureScaler

_CLASSES = (
    BatchInstanceNorm, BatchNorm, FeatureScaler, FrozenNorm, GroupNorm, Identity, InstanceNorm, LayerNorm, RMSNorm,
)  # fmt: skip


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
    known = {cls.__name__: cls for cls in (*_CLASSES, *classes)}
    if not isinstance(config, Mapping):
        raise TypeError(f"from_dict: {config!r} is not a mapping of fields, as {{'class': 'BatchNorm'}}.")
    name, fields = config.get("class"), {key: value for key, value in config.items() if key != "class"}
    cls = _checks.one_of(name, known, "from_dict: class")
    for field in fields:
        _checks.one_of(field, (*cls._static, *cls._numbers), f"from_dict: {name} has no field", TypeError)
    numbers = {f: _number(v, f"from_dict: {name}.{f}", classes) for f, v in fields.items() if f in cls._numbers}
    return cls(**fields | numbers)


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
    if array is None:
        raise TypeError(f"to_dict: {name}={value!r} can't be written down: it is traced, or no number and no text.")
    return {"array": np.asarray(array, np.float64).tolist(), "dtype": array.dtype.name}


def _number(value: Any, who: str, classes: Sequence[type]) -> Any:
    if isinstance(value, Mapping) and "array" in value:
        dtype = jnp.dtype(value.get("dtype", "float32"))
        # JAX may have no such wide numbers, which were some of NumPy then.
        return (jnp if jax.dtypes.canonicalize_dtype(dtype) == dtype else np).asarray(value["array"], dtype)
    if isinstance(value, Mapping):
        return from_dict(value, classes=classes)
    if isinstance(value, list):
        return jnp.asarray(value, jnp.float32)
    if isinstance(value, str):
        raise TypeError(f"{who}={value!r} is text. YAML reads 1e-5 as text, and 1.0e-5 as a number.")
    return value

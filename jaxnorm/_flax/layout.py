"""Flax's constructors in the terms of the core: what shares a statistic, and along which axes a scale lies.

`norm` is a module of flax.linen or of flax.nnx: both give the same names to what their constructors were told. `alone`:
statistics are of this device only, also where the constructor names mapped axes.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from jaxtyping import Array

from jaxnorm import _checks
from jaxnorm._core.reduction import Reduction


class Layout(NamedTuple):
    """The reduction that shares a statistic, and the axes along which scale, bias and state lie."""

    reduction: Reduction
    feature_axes: tuple[int, ...]


def batch_norm(norm: Any, x: Array, alone: bool) -> Layout:
    """Batch norm: statistics over all axes but `axis`, where the scale lies."""
    features = _axes(norm, "axis", x)
    return Layout(_reduction(norm, [a for a in range(x.ndim) if a not in features], alone), features)


def layer_norm(norm: Any, x: Array, alone: bool) -> Layout:
    """Layer norm: both kinds of axes are said."""
    return Layout(_reduction(norm, _axes(norm, "reduction_axes", x), alone), _axes(norm, "feature_axes", x))


def rms_norm(norm: Any, x: Array, alone: bool) -> Layout:
    """RMS norm: layer norm with the mean held at 0."""
    reduction, features = layer_norm(norm, x, alone)
    return Layout(reduction._replace(centered=False), features)


def instance_norm(norm: Any, x: Array, alone: bool) -> Layout:
    """Instance norm: statistics over all axes but the first and those of the features."""
    features = _axes(norm, "feature_axes", x)
    if 0 in features:
        raise ValueError(
            "The channel axes cannot include the leading dimension as this is assumed to be the batch axis: "
            f"feature_axes={norm.feature_axes}, and x has shape {x.shape}."
        )
    return Layout(_reduction(norm, [a for a in range(1, x.ndim) if a not in features], alone), features)


def group_norm(norm: Any, x: Array, alone: bool) -> Layout:
    """Group norm: statistics over blocks of the last axis, and over the others that are reduced."""
    channel, channels = x.ndim - 1, x.shape[-1]
    axes = (*range(1, channel), channel) if norm.reduction_axes is None else _axes(norm, "reduction_axes", x)
    if channel not in axes:
        raise ValueError(
            f"{_name(norm)}: reduction_axes={norm.reduction_axes} lacks axis {channel} of x, the last, which holds the "
            f"channels. Add it."
        )
    groups = norm.num_groups
    if groups is None and norm.group_size:
        groups = channels // norm.group_size
    _checks.divides(groups, channels, _name(norm))
    if norm.group_size is not None and groups * norm.group_size != channels:
        raise ValueError(
            f"{_name(norm)}: x has {channels} channels, which are not num_groups={groups} groups of "
            f"group_size={norm.group_size}. Give one of them, and None for the other."
        )
    reduction = _reduction(norm, [a for a in axes if a != channel], alone)
    return Layout(reduction._replace(groups=groups, group_axis=channel), (channel,))


def _name(norm: Any) -> str:
    return type(norm).__name__


def _axes(norm: Any, name: str, x: Array) -> tuple[int, ...]:
    """Axes counted from 0, in order, each once."""
    given = getattr(norm, name)
    several = given if isinstance(given, Iterable) else (given,)
    return tuple(sorted({_checks.axis(a, x.ndim, f"{_name(norm)}: {name}") for a in several}))


def _reduction(norm: Any, axes: Sequence[int], alone: bool) -> Reduction:
    if alone or norm.axis_name is None:
        return Reduction(tuple(axes))
    groups = norm.axis_index_groups
    groups = groups if groups is None else tuple(map(tuple, groups))
    return Reduction(tuple(axes), _checks.names(norm.axis_name, _name(norm)), axis_index_groups=groups)

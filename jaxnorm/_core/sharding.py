"""Where arrays lie on a mesh: with explicit axes, JAX wants the operands of a loop or a select in one place."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array


def places(x: Array) -> list[Any]:
    """Where `x` lies, axis by axis: a name of an explicit axis of a mesh, several, or None."""
    return [*jax.typeof(x).sharding.spec, *[None] * x.ndim][: x.ndim]


def _reshard(v: Array, spec: Sequence[Any], like: Array) -> Array:
    """`v` on the mesh that it or another array is on."""
    if places(v) == spec:
        return v
    mesh = next(mesh for mesh in (jax.typeof(a).sharding.mesh for a in (like, v)) if not mesh.empty)
    return jax.sharding.reshard(v, NamedSharding(mesh, PartitionSpec(*spec)))


def place_like(v: Array | None, x: Array) -> Any:
    """A vector in the dimensions of `x`, sharded like `x`."""
    if v is None:
        return None
    return _reshard(v, [s if n != 1 else None for s, n in zip(places(x), v.shape, strict=True)], x)


def broadcast_like(v: Array, shape: Sequence[Any], axes: Sequence[int], x: Array) -> Array:
    """A vector, its axes put where `axes` says, broadcast to a shape, sharded like `x` along the axes that are as long.

    Else the transpose, a sum over an axis of a mesh, would be one of an array that is gathered on all devices.
    """
    spec = [s if n == m else None for s, n, m in zip(places(x), shape, x.shape, strict=True)]
    sharding = NamedSharding(jax.typeof(x).sharding.mesh, PartitionSpec(*spec)) if any(spec) else None
    return lax.broadcast_in_dim(v, shape, axes, out_sharding=sharding)


def reshard_as(new: Array, old: Array) -> Array:
    """A new array, sharded like an old one of its shape, as the carry of a loop has to be."""
    return _reshard(new, places(old), old)


def stack(*vectors: Array) -> Array:
    """Vectors of one shape in a stack, each sharded like the first that is sharded."""
    first = next((v for v in vectors if any(places(v))), vectors[0])
    return jnp.stack([reshard_as(v, first) for v in vectors])


def gather_axis(v: Array, axis: int) -> Array:
    """A vector that is whole along an axis, on every device."""
    return _reshard(v, [None if a == axis else s for a, s in enumerate(places(v))], v)


def split(v: Array, pieces: Any) -> Array:
    """Axis 0 cut into so many pieces: the pieces are sharded as the axis was, or else what is in them."""
    spec, shape = places(v), (pieces, v.shape[0] // pieces if pieces else 1, *v.shape[1:])
    if spec[0] is None:
        return v.reshape(shape)
    sharding = jax.typeof(v).sharding
    names = spec[0] if isinstance(spec[0], tuple) else (spec[0],)
    devices = math.prod(sharding.mesh.shape[name] for name in names)
    first, second = (spec[0], None) if pieces % devices == 0 else (None, spec[0] if shape[1] % devices == 0 else None)
    return v.reshape(shape, out_sharding=NamedSharding(sharding.mesh, PartitionSpec(first, second, *spec[1:])))


def unsplit(v: Array, x: Array) -> Array:
    """The pieces of `x` put together again, sharded like it."""
    return v.reshape(x.shape, out_sharding=jax.typeof(x).sharding if any(places(x)) else None)

"""Where vectors lie on a mesh: with explicit axes JAX wants the operands of a loop or a select in one place."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec


def places(x):
    """Where `x` lies, axis by axis: a name of an explicit axis of a mesh, several, or None."""
    return [*jax.typeof(x).sharding.spec, *[None] * x.ndim][: x.ndim]


def _placed(v, spec, x):
    """`v` on the mesh that it or `x` is on."""
    if places(v) == spec:
        return v
    mesh = next(mesh for mesh in (jax.typeof(a).sharding.mesh for a in (x, v)) if not mesh.empty)
    return jax.sharding.reshard(v, NamedSharding(mesh, PartitionSpec(*spec)))


def along(v, x) -> Any:
    """A vector in the dimensions of `x`, as `x` lies."""
    if v is None:
        return None
    return _placed(v, [s if n != 1 else None for s, n in zip(places(x), v.shape, strict=True)], x)


def back(new, old):
    """A new array as an old one of its shape lies: a carry of a loop stays what it was."""
    return _placed(new, places(old), old)


def stacked(*vectors):
    """Vectors of one shape in a stack, each as the first lies that is sharded."""
    first = next((v for v in vectors if any(places(v))), vectors[0])
    return jnp.stack([back(v, first) for v in vectors])


def gathered(v, axis):
    """A vector, whole along an axis."""
    return _placed(v, [None if a == axis else s for a, s in enumerate(places(v))], v)


def split(v, pieces):
    """Axis 0 in so many pieces: these lie as the axis did, or else what is in them."""
    spec, shape = places(v), (pieces, v.shape[0] // pieces if pieces else 1, *v.shape[1:])
    if spec[0] is None:
        return v.reshape(shape)
    sharding = jax.typeof(v).sharding
    names = spec[0] if isinstance(spec[0], tuple) else (spec[0],)
    devices = math.prod(sharding.mesh.shape[name] for name in names)
    first, second = (spec[0], None) if pieces % devices == 0 else (None, spec[0] if shape[1] % devices == 0 else None)
    return v.reshape(shape, out_sharding=NamedSharding(sharding.mesh, PartitionSpec(first, second, *spec[1:])))


def joined(v, x):
    """The same undone, as `x` lies."""
    return v.reshape(x.shape, out_sharding=jax.typeof(x).sharding if any(places(x)) else None)

"""Meshes with explicit axes: there, JAX wants the operands of a loop or a select in one place, and is told which."""

import math

import jax
from jax.sharding import NamedSharding, PartitionSpec


def _spec(x):
    """Where `x` lies, axis by axis, on a mesh with explicit axes; None elsewhere."""
    sharding = jax.typeof(x).sharding
    return None if sharding.mesh.empty or not any(sharding.spec) else [*sharding.spec, *[None] * x.ndim][: x.ndim]


def _put(v, spec, mesh):
    return jax.sharding.reshard(v, NamedSharding(mesh, PartitionSpec(*spec)))


def along(v, x):
    """A vector in the dimensions of `x`, as `x` lies."""
    mine, other = None if v is None else _spec(v), _spec(x)
    if v is None or (mine is None and other is None):
        return v
    wanted = [s if n > 1 else None for s, n in zip(other or [None] * x.ndim, v.shape, strict=True)]
    mesh = jax.typeof(v if other is None else x).sharding.mesh
    return v if mine == wanted else _put(v, wanted, mesh)


def back(new, old):
    """A new array as an old one of its shape lies: a carry of a loop stays what it was."""
    mine, wanted = _spec(new), _spec(old)
    if mine == wanted:
        return new
    return _put(new, wanted or [], jax.typeof(new if wanted is None else old).sharding.mesh)


def split(v, pieces):
    """Axis 0 in so many pieces: these lie as the axis did, or else what is in them."""
    spec, shape = _spec(v), (pieces, v.shape[0] // pieces if pieces else 1, *v.shape[1:])
    if spec is None or spec[0] is None:
        return v.reshape(shape)
    sharding = jax.typeof(v).sharding
    names = spec[0] if isinstance(spec[0], tuple) else (spec[0],)
    devices = math.prod(sharding.mesh.shape[name] for name in names)
    first, second = (spec[0], None) if pieces % devices == 0 else (None, spec[0] if shape[1] % devices == 0 else None)
    return v.reshape(shape, out_sharding=NamedSharding(sharding.mesh, PartitionSpec(first, second, *spec[1:])))


def joined(v, x):
    """The same undone, as `x` lies."""
    return v.reshape(x.shape) if _spec(x) is None else v.reshape(x.shape, out_sharding=jax.typeof(x).sharding)

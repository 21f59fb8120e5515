"""Data on many devices, and ways to map a function over them."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxnorm as jn

rng = np.random.default_rng(0)
# Means of 1e4, examples that differ, weights that are uneven; the first two of eight devices have nothing to include.
X = (rng.standard_normal((16, 3, 4)) + 3 * rng.standard_normal((16, 1, 4)) + 1e4).astype(np.float32)
WEIGHTS = (rng.random((16, 3, 1)) * (rng.random((16, 3, 1)) > 0.3)).astype(np.float32)
WEIGHTS[:4] = 0
X = np.where(WEIGHTS > 0, X, np.nan).astype(np.float32)
G = np.where(WEIGHTS > 0, rng.standard_normal(X.shape), 0).astype(np.float32)
_, STATE = jn.BatchNorm().init(4)


def mesh(kind=AxisType.Auto, **sizes):
    devices = jax.devices()[: np.prod([*sizes.values()])]
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), devices=devices, axis_types=(kind,) * len(sizes))


def over_shards(f, axes, check_vma):
    """Data are split, all else is shared."""
    split = P(tuple(axes))
    return jax.jit(
        jax.shard_map(f, mesh=mesh(**axes), in_specs=split, out_specs=(split, split, P()), check_vma=check_vma)
    )


def over_a_map(f, axes, transform):
    """The same by vmap or pmap, one within the other."""
    for name in reversed(axes):
        f = transform(f, axis_name=name)

    def run(*args):
        y, dx, shared = f(*(np.reshape(v, (*axes.values(), -1, *v.shape[1:])) for v in args))
        first = jax.tree.map(lambda v: v[(0,) * len(axes)], shared)
        return *(np.reshape(v, (-1, *v.shape[len(axes) + 1 :])) for v in (y, dx)), first

    return run


WAYS = {
    "shard_map": lambda f, axes: over_shards(f, axes, True),
    "shard_map without vma": lambda f, axes: over_shards(f, axes, False),
    "vmap": lambda f, axes: jax.jit(over_a_map(f, axes, jax.vmap)),
    "pmap": lambda f, axes: over_a_map(f, axes, jax.pmap),
}


def step(spec):
    """y where it is defined, the gradient of x, and what is the same on all devices."""

    def apply(x, where, g):
        norm = lambda x: spec.apply(jn.Affine(), STATE, x, train=True, where=where)
        y, pull, state = jax.vjp(norm, x, has_aux=True)
        moments = jn.moments(x, (0, 1), where=where, axis_name=spec.axis_name)
        local = jn.moments(x, (0, 1), where=where)
        merged = local if spec.axis_name is None else jn.merge(local, axis_name=spec.axis_name)
        return jnp.where(where > 0, y, 0), pull(g)[0], (state, moments, merged)

    return apply


def close(got, want):
    (y, dx, (state, moments, merged)), (y_, dx_, (state_, moments_, _)) = got, want
    np.testing.assert_allclose(y, y_, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(dx, dx_, rtol=1e-4, atol=2e-6)
    for found, wanted in ((moments, moments_), (merged, moments_)):
        for a, b in zip(found[:3], wanted[:3], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
    # A mean of 1e4 in a float32, as ghosts and devices merge it, is off by up to 5e-4.
    for a, b in zip(state[:2], state_[:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


WHOLE = jax.jit(step(jn.BatchNorm()))(X, WEIGHTS, G)

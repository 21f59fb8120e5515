"""Between batch and instance norm, and no norm at all: what specs alone offer."""

import jax.numpy as jnp

from jaxnorm import _checks
from jaxnorm._functional import per_example, training
from jaxnorm._look import narrowed
from jaxnorm._normalize import arguments, normalize, normalize_tracking
from jaxnorm._over import Over, real_dtype, wide_dtype
from jaxnorm._placed import along
from jaxnorm._standardize import standardize


def instance_norm_tracking(
    x, state, scale, bias, *, train, channel_axis, batch_axis, momentum, epsilon, ddof, where, axis_name
):
    """Instance norm in training; in evaluation a norm by running statistics of what the examples had."""
    train = training(train, state, "InstanceNorm")
    if train:
        _checks.averages(state, "InstanceNorm")
    x = _checks.data(x, "InstanceNorm")
    channel, positions = per_example(x, channel_axis, batch_axis, "InstanceNorm")
    _checks.positions(positions, x, "InstanceNorm")
    over = Over(positions, _checks.names(axis_name, "InstanceNorm") if train else ())
    return normalize_tracking(
        x, state, over, (channel,), scale, bias,
        train=train, momentum=momentum, ddof=ddof, epsilon=epsilon, where=where,
        apart=tuple(a for a in range(x.ndim) if a != channel and a not in positions), who="InstanceNorm",
    )  # fmt: skip


def batch_instance_norm(
    x, state, gate, scale, bias, *, train, channel_axis, batch_axis, momentum, epsilon, ddof, where, axis_name
):
    """A share ρ of batch norm and 1 − ρ of instance norm: (γ ρ) x̂_B + β + γ (1 − ρ) x̂_I, two norms with own scales."""
    who = "BatchInstanceNorm"
    train = training(train, state, who)
    if train:
        _checks.averages(state, who)
    x = _checks.data(x, who)
    channel, positions = per_example(x, channel_axis, batch_axis, who)
    names = _checks.names(axis_name, who) if train else ()
    over = Over(tuple(a for a in range(x.ndim) if a != channel), names)
    of_batch, of_own = _shares(gate, scale, x, channel, who)
    where = None if where is None else jnp.asarray(where)
    options = {"epsilon": epsilon, "where": where, "who": who, "dtype": wide_dtype(x)}
    y, state = normalize_tracking(
        x, state, over, (channel,), of_batch, bias, train=train, momentum=momentum, ddof=ddof, **options
    )
    own = normalize(x, Over(positions), (channel,), of_own, None, **options)
    return narrowed(y + own, where, x.dtype), state


def _shares(gate, scale, x, channel, who):
    """γ ρ and γ (1 − ρ), in the dimensions of `x`."""
    if gate is None or jnp.iscomplexobj(gate):
        found = "None" if gate is None else f"of dtype {jnp.asarray(gate).dtype}"
        raise TypeError(f"{who}: gate is {found}. It holds a real number for each channel: 1 for batch norm alone.")
    gate = along(_checks.affine(gate, x, (channel,), who, "gate"), x).astype(real_dtype(x))
    # As jnp.clip, but with a derivative of 1 at both ends: there a gate is to move as between them.
    gate = jnp.where(gate < 0, 0, jnp.where(gate > 1, 1, gate))
    if scale is None:
        return gate, 1 - gate
    scale = along(_checks.affine(scale, x, (channel,), who, "scale"), x)
    scale = scale.astype(wide_dtype(x) if jnp.iscomplexobj(scale) else real_dtype(x))
    return scale * gate.astype(scale.dtype), scale * (1 - gate).astype(scale.dtype)


def affine(x, scale, bias, *, channel_axis, where):
    """No normalization: y = γ x + β."""
    x = _checks.data(x, "Identity")
    channel = _checks.axis(channel_axis, x.ndim, "Identity: channel_axis")
    _, *rest = arguments(x, (channel,), scale, bias, 0.0, where, "Identity")
    return standardize(x.dtype, x, None, None, jnp.ones((1,) * x.ndim, real_dtype(x)), *rest)

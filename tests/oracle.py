"""The norms once more, in NumPy and float64: every position has a label, and equal labels share a statistic."""

import numpy as np

import jaxnorm as jn

UNCENTERED = (jn.RMSNorm,)
"""The norms that take no mean."""


def labels(spec, shape):
    """Which statistic each position belongs to, from the definition of the norm alone."""
    index = np.indices(shape)
    axes = range(len(shape))
    match spec:
        # A gate shares what both of its norms do: a channel of the batch.
        case jn.BatchNorm() | jn.BatchInstanceNorm() | jn.BatchRenorm() | jn.EvoNormB0():
            ids = [index[spec.channel_axis]]
        case jn.LayerNorm() | jn.RMSNorm() | jn.UnitNorm() | jn.SimpleNorm():
            axis = spec.axis if isinstance(spec.axis, tuple) else (spec.axis,)
            ids = [index[a] for a in axes if a not in {b % len(shape) for b in axis}]
        case jn.DynamicTanh() | jn.LocalResponseNorm():
            ids = [np.arange(np.prod(shape)).reshape(shape)]
        case jn.SwitchableNorm():
            ids = []
        case _:
            batch = spec.batch_axis if isinstance(spec.batch_axis, tuple) else (spec.batch_axis,)
            ids = [index[b] for b in batch if b is not None]
            size = shape[spec.channel_axis] // spec.groups if hasattr(spec, "groups") else 1
            if not isinstance(spec, jn.GlobalResponseNorm):
                ids.append(index[spec.channel_axis] // size)
    flat = np.zeros(shape, int)
    for i in ids:
        flat = flat * (i.max(initial=0) + 1) + i
    return flat


def totals(label, values):
    """The sum of the values of each label, at every position."""
    if np.iscomplexobj(values):
        return totals(label, values.real) + 1j * totals(label, values.imag)
    return np.bincount(label.ravel(), values.ravel())[label] if values.size else values


def statistics(spec, x, where=None):
    """Count, mean and variance at every position; (0, 1) where nothing is included."""
    x = np.asarray(x, complex if np.iscomplexobj(x) else float)
    w = np.broadcast_to(np.ones(()) if where is None else np.asarray(where, float), x.shape)
    x = np.where(w > 0, x, 0)
    label = labels(spec, x.shape)
    count = totals(label, w)
    some = np.where(count > 0, count, 1)
    mean = 0 if isinstance(spec, UNCENTERED) else totals(label, w * x) / some
    var = totals(label, w * np.abs(x - mean) ** 2) / some
    return count, np.where(count > 0, mean, 0), np.where(count > 0, var, 1)


def mixture(spec, gate=None):
    """The norms that a norm is made of, and their shares."""
    return [(1, spec)] if gate is None else [(gate, jn.BatchNorm()), (1 - gate, jn.InstanceNorm())]


def normalize(spec, x, scale=1.0, bias=0.0, where=None, epsilon=None, gate=None):
    """What the norm gives in training; its parameters broadcast to `x`."""
    epsilon = float(np.asarray(spec.epsilon)) if epsilon is None else epsilon
    x = np.asarray(x, complex if np.iscomplexobj(x) else float)
    standardized = 0
    for share, kind in mixture(spec, gate):
        _, mean, var = statistics(kind, x, where)
        standardized = standardized + share * (x - mean) / np.sqrt(var + epsilon)
    return standardized * np.asarray(scale, float) + np.asarray(bias, float)


def ulps(y, exact):
    """The largest error in units of 2⁻²⁴ (1 + |exact|)."""
    return float(np.max(np.abs(np.asarray(y, exact.dtype) - exact) / (1 + np.abs(exact)), initial=0) * 2**24)

"""The wider family in NumPy and float64, each norm from the formula of its paper, and rows for the table of norms."""

import numpy as np

import jaxnorm as jn


def mean(v, w, axes):
    """The weighted mean over some axes, and the weight there."""
    total = w.sum(axes, keepdims=True)
    return (w * v).sum(axes, keepdims=True) / np.where(total > 0, total, 1), total


def moments(x, w, axes):
    """Mean and variance; (0, 1) where nothing counts."""
    center, total = mean(x, w, axes)
    var, _ = mean(np.abs(x - center) ** 2, w, axes)
    return np.where(total > 0, center, 0), np.where(total > 0, var, 1)


def mean_square(x, w, axes):
    square, total = mean(np.abs(x) ** 2, w, axes)
    return np.where(total > 0, square, 1)


def axes_of(spec, x):
    """The channel axis, those of examples, and those of positions."""
    channel = spec.channel_axis % x.ndim
    batch = getattr(spec, "batch_axis", 0)
    batch = tuple(b for b in (batch if isinstance(batch, tuple) else (batch,)) if b is not None)
    return channel, batch, tuple(a for a in range(x.ndim) if a != channel and a not in batch)


def over(spec, x):
    return tuple(a % x.ndim for a in (spec.axis if isinstance(spec.axis, tuple) else (spec.axis,)))


def filter_response(spec, x, w, epsilon, state, scale, bias, threshold=-np.inf):
    _, _, positions = axes_of(spec, x)
    y = x / np.sqrt(mean_square(x, w, positions) + epsilon) * scale + bias
    return y if np.iscomplexobj(x) else np.maximum(y, threshold)


def global_response(spec, x, w, epsilon, state, scale, bias):
    channel, _, positions = axes_of(spec, x)
    length = np.sqrt((w * np.abs(x) ** 2).sum(positions, keepdims=True))
    share = length / (length.mean(channel, keepdims=True) + epsilon)
    return scale * (x * share) + bias + x


def local_response(spec, x, w, epsilon, state, scale, bias):
    channel = spec.channel_axis % x.ndim
    squares = np.moveaxis(w * np.abs(x) ** 2, channel, -1)
    total = np.zeros_like(squares)
    for c in range(squares.shape[-1]):
        total[..., c] = squares[..., max(0, c - (spec.size - 1) // 2) : c + spec.size // 2 + 1].sum(-1)
    base = spec.k + spec.alpha / spec.size * np.moveaxis(total, -1, channel)
    return x / base**spec.beta * scale + bias


def unit(spec, x, w, epsilon, state, scale, bias):
    size = np.where(w > 0, np.abs(x), 0)
    if spec.order == np.inf:
        length = size.max(over(spec, x), keepdims=True)
    else:
        length = (w * size**spec.order).sum(over(spec, x), keepdims=True) ** (1 / spec.order)
    squares = np.where(w.sum(over(spec, x), keepdims=True) > 0, length**2, 0) + epsilon
    return x / np.sqrt(np.where(squares > 0, squares, np.inf)) * scale + bias


def simple(spec, x, w, epsilon, state, scale, bias):
    n = w.sum(over(spec, x), keepdims=True)
    _, var = moments(x, w, over(spec, x))
    return x / np.sqrt(var * np.where(n > spec.ddof, n / np.maximum(n - spec.ddof, 1e-30), 1) + epsilon) * scale + bias


def tanh(spec, x, w, epsilon, state, scale, bias, alpha=0.5):
    return np.tanh(alpha * x) * scale + bias


def evo_s0(spec, x, w, epsilon, state, scale, bias, v=1.0):
    channel, _, positions = axes_of(spec, x)
    blocks = lambda a: np.moveaxis(a, channel, -1).reshape(*np.moveaxis(a, channel, -1).shape[:-1], spec.groups, -1)
    moved = tuple(a - (a > channel) for a in positions)
    _, var = moments(blocks(x), blocks(w), (*moved, x.ndim))
    var = np.moveaxis(np.repeat(var[..., 0], x.shape[channel] // spec.groups, -1), -1, channel)
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-v * x)) / np.sqrt(var + epsilon) * scale + bias


def evo_b0(spec, x, w, epsilon, state, scale, bias, v=1.0):
    _, batch, positions = axes_of(spec, x)
    of_batch, of_each = (np.sqrt(moments(x, w, axes)[1] + epsilon) for axes in ((*batch, *positions), positions))
    return x / np.maximum(of_batch, v * x + of_each) * scale + bias


def switchable(spec, x, w, epsilon, state, scale, bias, mean_logits=(1, 1, 1), var_logits=(1, 1, 1)):
    channel, batch, positions = axes_of(spec, x)
    found = [moments(x, w, axes) for axes in (positions, (*positions, channel), (*batch, *positions))]
    shares = [np.exp(v) / np.exp(v).sum() for v in (np.asarray(mean_logits, float), np.asarray(var_logits, float))]
    center, var = (sum(p * f[i] for p, f in zip(shares[i], found, strict=True)) for i in (0, 1))
    return (x - center) / np.sqrt(var + epsilon) * scale + bias


def renorm(spec, x, w, epsilon, state, scale, bias):
    channel, _, _ = axes_of(spec, x)
    axes = tuple(a for a in range(x.ndim) if a != channel)
    lie = lambda v: np.asarray(v).reshape([-1 if a == channel else 1 for a in range(x.ndim)])
    running, running_var = (0.0, 1.0) if state is None else (lie(state.mean), lie(state.var).astype(float))
    center, var = moments(x, w, axes)
    deviation, own = np.sqrt(running_var + epsilon), np.sqrt(var + epsilon)
    r = np.clip(own / deviation, 1 / float(spec.r_max), float(spec.r_max))
    d = (center - running) / deviation
    d = d * np.minimum(np.abs(d), float(spec.d_max)) / np.where(d == 0, 1, np.abs(d))
    return ((x - center) / own * r + d) * scale + bias


FORMULAS = {
    jn.BatchRenorm: renorm, jn.DynamicTanh: tanh, jn.EvoNormB0: evo_b0, jn.EvoNormS0: evo_s0,
    jn.FilterResponseNorm: filter_response, jn.GlobalResponseNorm: global_response,
    jn.LocalResponseNorm: local_response, jn.SimpleNorm: simple, jn.SwitchableNorm: switchable, jn.UnitNorm: unit,
}  # fmt: skip


def normalize(spec, x, scale=1.0, bias=0.0, where=None, epsilon=None, state=None, **params):
    """What the norm gives in training; its parameters broadcast to `x`, logits aside."""
    epsilon = float(np.asarray(getattr(spec, "epsilon", 0.0))) if epsilon is None else epsilon
    x = np.asarray(x, complex if np.iscomplexobj(x) else float)
    w = np.broadcast_to(1.0 if where is None else np.asarray(where, float), x.shape)
    x = np.where((w > 0) | np.isfinite(x), x, 0)
    given = {name: np.asarray(v, float) for name, v in params.items()}
    scale, bias = (np.asarray(v, complex if np.iscomplexobj(v) else float) for v in (scale, bias))
    return FORMULAS[type(spec)](spec, x, w, epsilon, state, scale, bias, **given)


ROWS = {
    "renorm NHWC": (jn.BatchRenorm(r_max=1.2, d_max=0.1), (4, 3, 2, 6)),
    "renorm NCHW": (jn.BatchRenorm(channel_axis=1), (4, 6, 3, 2)),
    "switchable": (jn.SwitchableNorm(), (4, 3, 2, 6)),
    "switchable NCHW": (jn.SwitchableNorm(channel_axis=1), (3, 4, 5)),
    "filter response": (jn.FilterResponseNorm(), (3, 4, 3, 4)),
    "filter response alone": (jn.FilterResponseNorm(use_threshold=False, channel_axis=1), (3, 4, 6)),
    "global response": (jn.GlobalResponseNorm(), (3, 4, 3, 4)),
    "global response NCHW": (jn.GlobalResponseNorm(channel_axis=1), (3, 4, 5)),
    "local response": (jn.LocalResponseNorm(size=4, alpha=0.5, use_scale=True, use_bias=True), (4, 3, 8)),
    "local response NCHW": (jn.LocalResponseNorm(size=3, channel_axis=1, k=0.5, use_scale=True), (2, 6, 3)),
    "unit": (jn.UnitNorm(epsilon=1e-3, use_scale=True), (4, 3, 8)),
    "unit of order 3": (jn.UnitNorm(order=3, epsilon=1e-3, use_scale=True, use_bias=True), (4, 3, 8)),
    "unit of two axes": (jn.UnitNorm(order=1, axis=(1, 2), epsilon=1e-3, use_scale=True), (3, 4, 5)),
    "unit of the largest": (jn.UnitNorm(order=np.inf, epsilon=1e-3, use_scale=True), (4, 3, 8)),
    "simple": (jn.SimpleNorm(), (4, 3, 8)),
    "simple unbiased": (jn.SimpleNorm(ddof=1, axis=1, use_bias=True), (4, 8, 3)),
    "dynamic tanh": (jn.DynamicTanh(), (4, 3, 8)),
    "evo S0": (jn.EvoNormS0(groups=2), (3, 3, 2, 6)),
    "evo S0 NCHW": (jn.EvoNormS0(groups=3, channel_axis=1), (3, 6, 4)),
    "evo B0": (jn.EvoNormB0(), (4, 3, 2, 6)),
    "evo B0 NCHW": (jn.EvoNormB0(channel_axis=1), (4, 5, 6)),
}
"""Each norm of the family: a spec, and the shape of its data."""

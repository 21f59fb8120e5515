"""The norms of PyTorch, where it is installed. Channels last is its memory format of that name."""

from importlib.util import find_spec

import numpy as np


def contestants(case):
    """Functions without arguments: forward, and forward with backward; None without PyTorch, and for masks."""
    if case.masked or not find_spec("torch"):
        return None
    import torch

    norm, inputs, g = _norm(case)

    def forward():
        with torch.no_grad():
            norm()

    return forward, lambda: torch.autograd.grad(norm(), inputs, g)


def _norm(case):
    """The norm as a function without arguments, what to differentiate by, and a cotangent."""
    import torch

    cotangent, args = case.data()
    args, inputs, g = prepared(
        case, *(v if v is None else torch.from_numpy(np.array(v, np.float32)) for v in (cotangent, *args[:5]))
    )
    norm = formula(case)
    return lambda: norm(*args), inputs, g


def prepared(case, g, x, scale, bias, mean, var):
    """Tensors as PyTorch takes them: arguments of the formula, what to differentiate by, and a cotangent."""
    import torch

    dtype = getattr(torch, case.dtype)
    if case.channel_axis == -1 and x.ndim == 4:
        # A permuted channels-last array is one in PyTorch's format.
        x, g = x.permute(0, 3, 1, 2), g.permute(0, 3, 1, 2)
    x, g = x.to(dtype).detach().requires_grad_(), g.to(dtype)
    if case.kind != "batch":
        scale, bias = (v if v is None else v.to(dtype) for v in (scale, bias))
    learned = [v.requires_grad_() for v in (scale, bias) if v is not None]
    return (x, scale, bias, mean, var), [x, *learned], g


def formula(case):
    """The norm as a function of (x, scale, bias, mean, var)."""
    import torch.nn.functional as nf

    def norm(x, scale, bias, mean, var):
        match case.kind:
            case "batch":
                return nf.batch_norm(x, mean, var, scale, bias, True, 0.01)
            case "instance":
                return nf.instance_norm(x, weight=scale, bias=bias)
            case "group":
                return nf.group_norm(x, case.groups, scale, bias)
            case "layer":
                return nf.layer_norm(x, (case.channels,), scale, bias)
            case "rms":
                return nf.rms_norm(x, (case.channels,), scale, 1e-5)

    return norm


def kept(case):
    """Bytes of the tensors that autograd saves, over those of x; None for masks."""
    if case.masked:
        return None
    import torch

    saved = {}

    def pack(tensor):
        saved[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _norm(case)[0]()
    return sum(saved.values()) / case.bytes

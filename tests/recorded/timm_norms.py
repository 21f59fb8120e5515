"""Makes timm_norms.npz: what timm's norms and PyTorch's functions give, in float64, to be compared with without them.

    python tests/recorded/timm_norms.py    # with torch 2.14 and timm 1.0, on a CPU

For each module of timm: its parameters, x, y, and the gradient of Σ sin y by x, in training (and, with running
statistics, in evaluation after it). For each function of PyTorch: x and y.
"""

from pathlib import Path

import numpy as np
import timm.layers as timm
import torch
from timm.layers.grn import GlobalResponseNorm
from torch.nn import functional

MODULES = {
    "FilterResponseNormTlu2d": timm.FilterResponseNormTlu2d(6),
    "EvoNorm2dS0": timm.EvoNorm2dS0(6, groups=3),
    "EvoNorm2dB0": timm.EvoNorm2dB0(6, momentum=0.25),
    "GlobalResponseNorm": GlobalResponseNorm(6, channels_last=False),
    "SimpleNorm": timm.SimpleNorm(5),
    "StdConv2d": timm.StdConv2d(6, 4, 3),
    "ScaledStdConv2d": timm.ScaledStdConv2d(6, 4, 3, gamma=1.7, eps=1e-6),
}


def module(name, layer):
    layer = layer.double()
    found = {}
    for key, value in layer.named_parameters():
        value.data.copy_(torch.rand_like(value) + (0 if key == "tau" else 0.5))
        found[f"param {key}"] = value.detach().numpy().copy()
    x = (torch.randn(3, 6, 4, 5, dtype=torch.float64) + 0.5).requires_grad_()
    y = layer.train()(x)
    y.sin().sum().backward()
    found |= {"x": x.detach().numpy(), "y": y.detach().numpy(), "dx": x.grad.numpy()}
    if hasattr(layer, "running_var"):
        found |= {"var": layer.running_var.numpy().copy(), "evaluated": layer.eval()(x).detach().numpy()}
    return {f"{name}/{key}": value for key, value in found.items()}


def functions():
    x = torch.randn(3, 7, 4, dtype=torch.float64)
    found = {"x": x}
    for size in (3, 5):
        found[f"local_response_norm {size}"] = functional.local_response_norm(x, size, 0.3, 0.6, 1.5)
    for p in (1, 2, 3.5, float("inf")):
        found[f"normalize {p}"] = functional.normalize(x, p=p, dim=1)
    layer = torch.nn.Conv2d(3, 4, 3).double()
    w = layer.weight.detach().clone()
    found["weight"] = w
    g = torch.rand(4, 1, 1, 1, dtype=torch.float64)
    found["weight_norm g"], found["weight_norm"] = g, torch._weight_norm(w, g, 0)
    spectral = torch.nn.utils.parametrizations.spectral_norm(layer)
    inner = spectral.parametrizations.weight[0]
    found |= {"spectral u0": inner._u.clone(), "spectral v0": inner._v.clone()}
    y = spectral.weight
    y.sin().sum().backward()
    found |= {"spectral": y, "spectral u1": inner._u.clone(), "spectral v1": inner._v.clone()}
    found["spectral gradient"] = spectral.parametrizations.weight.original.grad
    return {f"torch/{key}": value.detach().numpy().copy() for key, value in found.items()}


if __name__ == "__main__":
    torch.manual_seed(0)
    arrays = functions()
    for name, layer in MODULES.items():
        arrays |= module(name, layer)
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **arrays)

"""Makes torch_norms.npz: what PyTorch's norms do, to be compared with without PyTorch.

    python tests/recorded/torch_norms.py    # with torch 2.13, on a CPU

For each module: its arguments, its state_dict, data of two batches, what it gives for the first in evaluation, for both
in training, one after the other with a step of SGD between, and its state_dict at last.
"""

import json
from pathlib import Path

import numpy as np
import torch

MODULES = {
    "BatchNorm1d": ((4,), {}, (8, 4)),
    "BatchNorm2d": ((4,), {"eps": 1e-3, "momentum": 0.3}, (3, 4, 5, 2)),
    "BatchNorm3d": ((4,), {"affine": False}, (2, 4, 3, 2, 2)),
    "BatchNorm2d cumulative": ((4,), {"momentum": None}, (3, 4, 5, 2)),
    "BatchNorm2d untracked": ((4,), {"track_running_stats": False}, (3, 4, 5, 2)),
    "SyncBatchNorm": ((4,), {}, (3, 4, 5, 2)),
    "InstanceNorm1d": ((4,), {}, (3, 4, 6)),
    "InstanceNorm2d": ((4,), {"affine": True}, (3, 4, 5, 2)),
    "InstanceNorm2d tracking": ((4,), {"affine": True, "track_running_stats": True}, (3, 4, 5, 2)),
    "LayerNorm": ((6,), {}, (5, 6)),
    "LayerNorm two axes": (((3, 6),), {"bias": False, "eps": 1e-2}, (5, 3, 6)),
    "GroupNorm": ((2, 4), {}, (3, 4, 5, 2)),
    "RMSNorm": ((6,), {}, (5, 6)),
    "RMSNorm epsilon": ((6,), {"eps": 1e-2}, (5, 6)),
}


def record(name, args, kwargs, shape):
    module = getattr(torch.nn, name.split()[0])(*args, **kwargs)
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.rand_like(value))
    found = {f"before/{key}": value.clone().numpy() for key, value in module.state_dict().items()}
    batches = [torch.randn(shape) * 2 + 3 for _ in range(2)]
    if name.split()[0] == "SyncBatchNorm":  # on a CPU, its data are those of a BatchNorm2d
        module = torch.nn.BatchNorm2d(*args, **kwargs)
        module.load_state_dict({key.removeprefix("before/"): torch.from_numpy(v) for key, v in found.items()})
    module.eval()
    found["evaluated"] = module(batches[0]).detach().numpy()
    module.train()
    for i, x in enumerate(batches):
        y = module(x)
        found |= {f"x{i}": x.numpy(), f"y{i}": y.detach().numpy()}
        if list(module.parameters()):
            module.zero_grad()
            (y**3).mean().backward()
            with torch.no_grad():
                for p in module.parameters():
                    p -= 0.1 * p.grad
    found |= {f"after/{key}": value.numpy() for key, value in module.state_dict().items()}
    return found


if __name__ == "__main__":
    torch.manual_seed(0)
    recorded = {}
    for name, (args, kwargs, shape) in MODULES.items():
        recorded |= {f"{name}/{key}": value for key, value in record(name, args, kwargs, shape).items()}
        recorded[f"{name}/arguments"] = np.array(
            json.dumps(
                kwargs
                | (
                    {"num_groups": args[0]}
                    if name == "GroupNorm"
                    else {"normalized_shape": args[0]}
                    if "LayerNorm" in name or "RMSNorm" in name
                    else {}
                )
            )
        )
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **recorded)

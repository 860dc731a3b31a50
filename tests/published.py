"""The networks whose weights others have published, written in PyTorch: their layers, by our names."""

from __future__ import annotations

import torch

nn = torch.nn
PUBLISHED = ("alexnet-torchvision", "bvlc_alexnet", "caffenet")


class AlexNet(nn.Module):
    """torchvision's, whose tensors have the names that they have there."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Linear(9216, 4096), nn.ReLU(),
            nn.Dropout(0.5), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, classes),
        )  # fmt: skip

    def forward(self, x):
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class Across(nn.Module):
    """Caffe's normalisation: all maps in one row, alpha over the size of the window."""

    def forward(self, x):
        return nn.functional.local_response_norm(x, 5, 1e-4, 0.75, 1.0)


def torchvision(classes: int):
    names = "conv1 relu pool1 conv2 relu pool2 conv3 relu conv4 relu conv5 relu pool5 average flatten "
    names += "drop6 fc6 relu drop7 fc7 relu fc8"
    model = AlexNet(classes)
    layers = [*model.features, model.avgpool, nn.Flatten(), *model.classifier]
    return list(zip(names.split(), layers, strict=True))


def caffe(classes: int, pool_first: bool):
    def between(number: int):
        pair = [(f"norm{number}", Across()), (f"pool{number}", nn.MaxPool2d(3, 2, ceil_mode=True))]
        return pair[::-1] if pool_first else pair

    return [
        ("conv1", nn.Conv2d(3, 96, 11, 4)), ("relu", nn.ReLU()), *between(1),
        ("conv2", nn.Conv2d(96, 256, 5, padding=2, groups=2)), ("relu", nn.ReLU()), *between(2),
        ("conv3", nn.Conv2d(256, 384, 3, padding=1)), ("relu", nn.ReLU()),
        ("conv4", nn.Conv2d(384, 384, 3, padding=1, groups=2)), ("relu", nn.ReLU()),
        ("conv5", nn.Conv2d(384, 256, 3, padding=1, groups=2)), ("relu", nn.ReLU()),
        ("pool5", nn.MaxPool2d(3, 2, ceil_mode=True)), ("flatten", nn.Flatten()),
        ("fc6", nn.Linear(9216, 4096)), ("relu", nn.ReLU()), ("drop6", nn.Dropout(0.5)),
        ("fc7", nn.Linear(4096, 4096)), ("relu", nn.ReLU()), ("drop7", nn.Dropout(0.5)),
        ("fc8", nn.Linear(4096, classes)),
    ]  # fmt: skip


def peer(name: str, classes: int = 1000):
    """Pairs of name and layer in their order; "relu", "average" and "flatten" are no layers of ours."""
    return torchvision(classes) if name == "alexnet-torchvision" else caffe(classes, name == "caffenet")

"""The same network in PyTorch, as fast as its user would write it: the peer of ``benchmarks.step``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from convnet.spec import Conv, Dropout, Linear, Lrn, NetworkSpec, Pool

# memory format and optimizer; which is the fastest differs between machines, so that all are tried
VARIANTS = [(memory, optimizer) for memory in ("contiguous", "channels_last") for optimizer in ("fused", "foreach")]


class TorchNetwork:
    """``train(i)`` is one step on batch ``i`` of those given: forward, loss, backward, momentum SGD."""

    def __init__(
        self, spec: NetworkSpec, weights: dict[str, np.ndarray], images: list[np.ndarray], labels: list[np.ndarray],
        variant: tuple[str, str], device: str, lr: float, precision: str = "fp32",
    ):  # fmt: skip
        self.spec, self.device = spec, device
        # what PyTorch calls mixed precision: parameters in float32, products in bfloat16
        self.autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
        memory, optimizer = variant
        self.channels_last = memory == "channels_last"
        self.format = torch.channels_last if self.channels_last else torch.contiguous_format
        self.parameters = {}
        for name, value in weights.items():
            parameter = torch.from_numpy(value.copy()).to(device)
            if parameter.ndim == 4:
                parameter = parameter.contiguous(memory_format=self.format)
            self.parameters[name] = parameter.requires_grad_()
        groups: list[dict[str, Any]] = [
            {"params": [p for n, p in self.parameters.items() if n.endswith("weight")], "weight_decay": 5e-4},
            {"params": [p for n, p in self.parameters.items() if n.endswith("bias")], "weight_decay": 0.0},
        ]
        how = {"fused": True} if optimizer == "fused" else {"foreach": True}
        self.optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9, **how)
        self.batches = [
            (self.prepare(x), torch.from_numpy(y).long().to(device)) for x, y in zip(images, labels, strict=True)
        ]

    def prepare(self, images: np.ndarray) -> torch.Tensor:
        """Images where and how the network wants them, the zeros of a first layer that rounds up around them."""
        x = torch.from_numpy(images).to(self.device)
        first = self.spec.layers[0]
        if isinstance(first, Conv) and first.ceil_mode:
            x = self._overhang(x, first)
        return x.contiguous(memory_format=self.format)

    @staticmethod
    def _overhang(x: torch.Tensor, layer: Conv) -> torch.Tensor:
        over = -(x.shape[2] + 2 * layer.padding - layer.size) % layer.stride
        return F.pad(x, (0, over, 0, over)) if over else x

    def forward(self, x: torch.Tensor, train: bool) -> torch.Tensor:
        split = False
        for index, layer in enumerate(self.spec.layers):
            if isinstance(layer, Conv):
                if layer.ceil_mode and index > 0:
                    x = self._overhang(x, layer)
                groups = 1 if layer.joins or not split else self.spec.towers
                weight, bias = self.parameters[f"{layer.name}.weight"], self.parameters[f"{layer.name}.bias"]
                x = F.conv2d(x, weight, bias, layer.stride, layer.padding, groups=groups)
                x = self._activate(x, layer.activation)
                split = True
            elif isinstance(layer, Lrn):
                x = self._lrn(x, layer)
            elif isinstance(layer, Pool):
                x = F.max_pool2d(x, layer.size, layer.stride, ceil_mode=True)
            elif isinstance(layer, Linear):
                weight, bias = self.parameters[f"{layer.name}.weight"], self.parameters[f"{layer.name}.bias"]
                x = F.linear(x.flatten(1), weight, bias)
                x = self._activate(x, layer.activation)
            elif isinstance(layer, Dropout):
                x = F.dropout(x, layer.p) * (1 - layer.p) if train else x * (1 - layer.p)
        return x

    @staticmethod
    def _activate(x: torch.Tensor, activation: str | None) -> torch.Tensor:
        if activation == "relu":
            return F.relu(x, inplace=True)
        return x.tanh_() if activation == "tanh" else x

    def _lrn(self, x: torch.Tensor, layer: Lrn) -> torch.Tensor:
        alpha = layer.alpha * layer.size  # PyTorch divides it by the size
        towers = self.spec.towers
        if towers == 1:
            return F.local_response_norm(x, layer.size, alpha, layer.beta, layer.k)
        if not self.channels_last:  # each tower as an image of its own: no copies
            N, C, H, W = x.shape
            y = F.local_response_norm(x.view(N * towers, C // towers, H, W), layer.size, alpha, layer.beta, layer.k)
            return y.view(N, C, H, W)
        parts = [F.local_response_norm(t, layer.size, alpha, layer.beta, layer.k) for t in x.chunk(towers, 1)]
        return torch.cat(parts, 1).contiguous(memory_format=self.format)

    def train(self, number: int) -> None:
        images, labels = self.batches[number % len(self.batches)]
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast:
            loss = F.cross_entropy(self.forward(images, True), labels)
        loss.backward()
        self.optimizer.step()

    def logits(self, images: np.ndarray) -> np.ndarray:
        """In test mode."""
        with torch.no_grad(), self.autocast:
            return self.forward(self.prepare(images), False).float().cpu().numpy()

    def synchronize(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)

"""The same network in PyTorch, as fast as its user can write it: the peer of ``benchmarks.step``.

Products are PyTorch's own, in its own layouts; the optimizer is the fused one; in "bf16" parameters are float32 and
everything else autocast. What can be chosen is a ``Variant``. Which of them is the fastest differs between machines,
precisions and batch sizes, so that all are tried.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from convnet.network.spec import AvgPool, Conv, Dropout, Linear, Lrn, NetworkSpec, Pool

WARM_STEPS = 3  # before a capture: momentum exists, algorithms are chosen


@dataclass(frozen=True)
class Variant:
    """``memory``: of activations and filters, "contiguous" or "channels_last". ``lrn``: PyTorch's "own", or "rewritten"
    to take far fewer passes over memory. ``compiled``: by ``torch.compile``.
    """

    memory: str = "contiguous"
    lrn: str = "own"
    compiled: bool = False

    def __str__(self) -> str:
        return self.memory + (", LRN rewritten" if self.lrn == "rewritten" else "")

    def mode(self, captured: bool) -> str:
        """One of ``step.MODES``."""
        return {(False, False): "eager", (False, True): "graph", (True, False): "compile"}.get(
            (self.compiled, captured), "compile+graph"
        )


# those that take long to prepare last, of these the most promising first
VARIANTS = [
    Variant("contiguous"), Variant("channels_last"),
    Variant("contiguous", "rewritten"), Variant("channels_last", "rewritten"),
    Variant("channels_last", "rewritten", True), Variant("contiguous", "rewritten", True),
    Variant("contiguous", "own", True), Variant("channels_last", "own", True),
]  # fmt: skip


def on_device(spec: NetworkSpec, images: np.ndarray, mean: np.ndarray, device: str) -> torch.Tensor:
    """uint8 (n, crop, crop, 3) as the network wants it: float32 (n, 3, ...) on ``device``, (pixel - mean) * scale, the
    zeros of an overhanging first layer around it."""
    x = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float()
    x = (x.sub_(torch.from_numpy(mean).to(device)).mul_(spec.input_scale)).contiguous()
    first = spec.layers[0]
    return overhang(x, first) if isinstance(first, Conv) and first.ceil_mode else x


def overhang(x: torch.Tensor, layer: Conv) -> torch.Tensor:
    over = -(x.shape[2] + 2 * layer.padding - layer.size) % layer.stride
    return F.pad(x, (0, over, 0, over)) if over else x


class TorchNetwork:
    """A network with ``weights``, and ``batches`` of images as ``on_device`` makes them and int64 labels.

    ``step(i)`` is a whole step on batch ``i``, ``train(i)`` is forward, loss and backward, ``forward(i)`` the logits in
    test mode. Dropout in training scales what it keeps, as PyTorch does: one multiplication less than ours has.
    """

    def __init__(
        self, spec: NetworkSpec, weights: dict[str, np.ndarray], batches: list[tuple[torch.Tensor, torch.Tensor]],
        variant: Variant, device: str, precision: str = "fp32", lr: float = 1e-3, momentum: float = 0.9,
        weight_decay: float = 5e-4,
    ):  # fmt: skip
        self.spec, self.variant, self.device, self.precision = spec, variant, torch.device(device), precision
        before = torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0
        self.format = torch.channels_last if variant.memory == "channels_last" else torch.contiguous_format
        self.parameters = {}
        for name, value in weights.items():
            parameter = torch.from_numpy(value.copy()).to(self.device)
            if parameter.ndim == 4:
                parameter = parameter.contiguous(memory_format=self.format)
            self.parameters[name] = parameter.requires_grad_()
        groups: list[dict[str, Any]] = [
            {"params": [p for n, p in self.parameters.items() if n.endswith("weight")], "weight_decay": weight_decay},
            {"params": [p for n, p in self.parameters.items() if n.endswith("bias")], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, fused=True)
        self.batches = [(self._laid_out(x), y) for x, y in batches]
        copies = [ours for (ours, _), (theirs, _) in zip(self.batches, batches, strict=True) if ours is not theirs]
        self._elsewhere = before + sum(x.numel() * x.element_size() for x in copies)  # bytes that are not a step's
        self._bands: dict[str, torch.Tensor] = {}
        self.captured = False  # whether work is captured as a CUDA graph, once, and played from then on
        self._graphs: dict[str, Callable[[], None]] = {}
        self._images, self._labels = (t.clone() for t in self.batches[0])  # what a captured graph reads
        self._peak: int | None = None
        self._loss, self._logits = self.loss, self.logits
        if variant.compiled:
            torch._dynamo.reset()  # or earlier networks count towards the limit of compilations
            self._loss, self._logits = (
                torch.compile(f, dynamic=False, fullgraph=True) for f in (self.loss, self.logits)
            )

    def _laid_out(self, x: torch.Tensor) -> torch.Tensor:
        """In the type and layout that the first layer likes best."""
        return x.to(torch.bfloat16 if self.precision == "bf16" else x.dtype).contiguous(memory_format=self.format)

    # ---- the function

    def _autocast(self) -> Any:
        """What PyTorch calls mixed precision: parameters in float32, products in bfloat16."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def loss(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy in training."""
        with self._autocast():
            return F.cross_entropy(self._run(x, True), labels)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """In test mode: dropped layers are multiplied by 1 - p, unless they are scaled in training."""
        with self._autocast():
            return self._run(x, False)

    def _run(self, x: torch.Tensor, train: bool) -> torch.Tensor:
        split = False
        for index, layer in enumerate(self.spec.layers):
            if isinstance(layer, Conv):
                if layer.ceil_mode and index > 0:
                    x = overhang(x, layer)
                groups = 1 if layer.joins or not split else self.spec.towers
                weight, bias = self.parameters[f"{layer.name}.weight"], self.parameters[f"{layer.name}.bias"]
                x = F.conv2d(x, weight, bias, layer.stride, layer.padding, groups=groups)
                x = self._activate(x, layer.activation)
                split = True
            elif isinstance(layer, Lrn):
                x = self._lrn(x, layer)
            elif isinstance(layer, Pool):
                x = F.max_pool2d(x, layer.size, layer.stride, ceil_mode=layer.ceil_mode)
            elif isinstance(layer, AvgPool):
                padding, ceil = layer.padding, layer.ceil_mode
                x = F.avg_pool2d(x, layer.size, layer.stride, padding, ceil, count_include_pad=False)
            elif isinstance(layer, Linear):
                weight, bias = self.parameters[f"{layer.name}.weight"], self.parameters[f"{layer.name}.bias"]
                x = F.linear(x.flatten(1), weight, bias)
                x = self._activate(x, layer.activation)
            elif isinstance(layer, Dropout):
                x = F.dropout(x, layer.p) if train else x if layer.scaled else x * (1 - layer.p)
        return x

    @staticmethod
    def _activate(x: torch.Tensor, activation: str | None) -> torch.Tensor:
        if activation == "relu":
            return F.relu(x, inplace=True)
        return x.tanh_() if activation == "tanh" else x

    def _towers(self, layer: Lrn) -> int:
        """How many parts of the maps are normalised by themselves."""
        return 1 if layer.across else self.spec.towers

    def _lrn(self, x: torch.Tensor, layer: Lrn) -> torch.Tensor:
        if self.variant.lrn == "rewritten":
            return self._lrn_by_slices(x, layer) if self.variant.compiled else self._lrn_by_band(x, layer)
        alpha = layer.alpha * layer.size  # PyTorch divides it by the size
        towers = self._towers(layer)
        if towers == 1:
            return F.local_response_norm(x, layer.size, alpha, layer.beta, layer.k)
        if self.variant.memory == "contiguous":  # each tower as an image of its own: no copies
            N, C, H, W = x.shape
            y = F.local_response_norm(x.reshape(N * towers, C // towers, H, W), layer.size, alpha, layer.beta, layer.k)
            return y.reshape(N, C, H, W)
        parts = [F.local_response_norm(t, layer.size, alpha, layer.beta, layer.k) for t in x.chunk(towers, 1)]
        return torch.cat(parts, 1).contiguous(memory_format=self.format)

    def _lrn_by_slices(self, x: torch.Tensor, layer: Lrn) -> torch.Tensor:
        """The sum over maps as a sum of shifted slices, for a compiler to make one kernel of; powers in float32."""
        C = x.shape[1]
        towers, before = self._towers(layer), layer.size // 2
        with torch.autocast(self.device.type, enabled=False):
            own = x.float().unflatten(1, (towers, C // towers))
            squares = F.pad(own * own, (0, 0, 0, 0, before, layer.size - 1 - before))
            total = sum(squares.narrow(2, shift, C // towers) for shift in range(layer.size))
            return (own * (layer.k + layer.alpha * total) ** -layer.beta).flatten(1, 2).to(x.dtype)

    def _lrn_by_band(self, x: torch.Tensor, layer: Lrn) -> torch.Tensor:
        """k + alpha * (sum over maps) as a 1x1 convolution with a band of alphas and the bias k."""
        towers = self._towers(layer)
        C = x.shape[1] // towers
        if layer.name not in self._bands:
            before = layer.size // 2
            rows, columns = np.indices((C, C))
            near = (columns >= rows - before) & (columns < rows - before + layer.size)
            band = torch.from_numpy(np.tile(near * np.float32(layer.alpha), (towers, 1)))
            band = band[:, :, None, None].to(x.device, x.dtype).contiguous(memory_format=self.format)
            self._bands[layer.name] = band
        band = self._bands[layer.name]
        with torch.autocast(self.device.type, enabled=False):
            k = torch.full((x.shape[1],), layer.k, dtype=x.dtype, device=x.device)
            return x * F.conv2d(x * x, band, k, groups=towers) ** -layer.beta

    # ---- work under the clock

    def step(self, number: int) -> None:
        """Forward, loss, backward, update."""
        self._do("step", number, lambda x, y: (self._gradients(x, y), self.optimizer.step()))

    def train(self, number: int) -> None:
        """Forward, loss and backward."""
        self._do("train", number, self._gradients)

    def forward(self, number: int) -> None:
        """Logits in test mode, left on the device."""
        self._do("forward", number, self._infer)

    def _gradients(self, x: torch.Tensor, labels: torch.Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self._loss(x, labels).backward()

    def _infer(self, x: torch.Tensor, labels: torch.Tensor) -> None:
        with torch.no_grad():
            self._logits(x)

    def _do(self, name: str, number: int, work: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
        images, labels = self.batches[number % len(self.batches)]
        if not self.captured:
            work(images, labels)
            return
        if name not in self._graphs:
            self._graphs[name] = self._capture(lambda: work(self._images, self._labels))
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._graphs[name]()

    @staticmethod
    def _capture(work: Callable[[], None]) -> Callable[[], None]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_STEPS):
                work()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay

    def first_logits(self) -> np.ndarray:
        """Of the first batch, in test mode."""
        with torch.no_grad():
            return self._logits(self.batches[0][0]).float().cpu().numpy()

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_memory(self) -> int | None:
        """Bytes that tensors take at most in a step of single calls, one batch included; None where nobody counts.

        Measured once: the memory of captured graphs does not show afterwards.
        """
        if self.device.type != "cuda" or self._peak:
            return self._peak
        self._gradients(*self.batches[0])
        self.optimizer.step()
        self.synchronize()
        torch.cuda.reset_peak_memory_stats(self.device)
        for number in range(2):
            self._gradients(*self.batches[number % len(self.batches)])
            self.optimizer.step()
        self.synchronize()
        self._peak = int(torch.cuda.max_memory_allocated(self.device)) - self._elsewhere
        return self._peak

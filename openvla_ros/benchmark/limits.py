"""What the device can do at best: how fast it reads weights, and how fast it multiplies at the model's very shapes.

Comes in: device, dtype and the network's sizes; goes out: bytes per second, milliseconds per product, and from them the least time of each
stage. The matrices are cut out of one buffer larger than any cache. Attention, norms and everything between the products count as nothing
here, so a stage cannot reach its limit; how near it comes is the point.
"""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from openvla_ros.policy.openvla import avx512
from openvla_ros.policy.openvla.language import DecoderShape
from openvla_ros.policy.openvla.model import ModelShape
from openvla_ros.policy.openvla.vision import TowerShape

BUFFER_BYTES = 768 * 1024**2
"""Read over and over: more than twice the largest last-level cache of a server's processor."""

STREAM_SIDE = 4096
"""Of the square matrices of one-row products."""

WARM_BYTES = 96 * 1024**2
"""So many bytes of different matrices of one shape are multiplied in turn, at least two: in a model each is used once per pass, too."""

MOST_MATRICES = 48
"""Of one shape."""

SQUARE = 2048
"""Rows, inputs and outputs of the product that stands for the device's matmul rate as such."""


@dataclass(frozen=True)
class Product:
    """[rows, inputs] times [inputs, outputs]."""

    rows: int
    inputs: int
    outputs: int

    @property
    def flop(self) -> int:
        """Multiplications and additions."""
        return 2 * self.rows * self.inputs * self.outputs

    def __str__(self) -> str:
        return f"{self.rows}x{self.inputs}x{self.outputs}"


Work = Mapping[str, Counter[Product]]
"""Stage -> how often it does each product."""


def work_of(shape: ModelShape, positions: int) -> Work:
    """The products of the stages for one picture. positions: of the prompt with its picture."""
    vision: Counter[Product] = Counter()
    for tower in shape.towers:
        vision += tower_work(tower)
    width, hidden, patches = shape.vision_width, shape.decoder.hidden_size, shape.towers[0].patches
    layers = [(width, 4 * width), (4 * width, hidden), (hidden, hidden)] if len(shape.towers) > 1 else [(width, hidden), (hidden, hidden)]
    projector = Counter(Product(patches, inputs, outputs) for inputs, outputs in layers)
    return {"vision": vision + projector, "prefill": decoder_work(shape.decoder, positions), "decode": decoder_work(shape.decoder, 1)}


def tower_work(tower: TowerShape) -> Counter[Product]:
    """One tower up to its second-to-last block."""
    rows, width = tower.patches + tower.prefix, tower.width
    block = ((width, 3 * width), (width, width), (width, tower.mlp), (tower.mlp, width))
    work = Counter({Product(rows, inputs, outputs): 0 for inputs, outputs in block})
    for inputs, outputs in block:
        work[Product(rows, inputs, outputs)] += tower.depth - 1
    work[Product(tower.patches, 3 * tower.patch**2, width)] += 1
    return work


def decoder_work(decoder: DecoderShape, rows: int) -> Counter[Product]:
    """All layers, with q, k, v and gate, up side by side, and the output head for one position."""
    width, heads = decoder.hidden_size, decoder.num_attention_heads * decoder.head_dim
    shared = decoder.num_key_value_heads * decoder.head_dim
    work: Counter[Product] = Counter()
    for inputs, outputs in ((width, heads + 2 * shared), (heads, width), (width, 2 * decoder.intermediate_size),
                            (decoder.intermediate_size, width)):
        work[Product(rows, inputs, outputs)] += decoder.num_hidden_layers
    work[Product(1, width, decoder.vocab_size)] += 1
    return work


def weight_count(work: Counter[Product]) -> int:
    """Weights that are read for it."""
    return sum(count * product.inputs * product.outputs for product, count in work.items())


@dataclass
class Limits:
    """Measurements so far; `measure` adds one of each. Keep one per device, dtype and shape."""

    device: torch.device
    dtype: torch.dtype
    work: Work
    buffer_bytes: int = BUFFER_BYTES
    read_s: dict[str, list[float]] = field(default_factory=dict)
    """Way of reading -> seconds for the whole buffer."""
    product_s: dict[Product, list[float]] = field(default_factory=dict)
    """Seconds for one product, by the way that was fastest that time."""
    recorded: dict[str, Callable[[], object]] = field(default_factory=dict)
    """On a GPU: what launches a group of products at once."""

    def __post_init__(self) -> None:
        self.buffer = torch.randn(2**24, generator=torch.Generator().manual_seed(0)).to(self.dtype).to(self.device).repeat(
            math.ceil(self.buffer_bytes / self.dtype.itemsize / 2**24))

    def measure(self) -> None:
        """One more measurement of everything: a second or so, more for a large model on a CPU."""
        with torch.inference_mode():
            for way, call in self.ways_to_read().items():
                self.read_s.setdefault(way, []).append(self.time(call))
            wide = {product for work in self.work.values() for product in work if product.rows > 1}
            for product in sorted(wide | {Product(SQUARE, SQUARE, SQUARE)}, key=str):
                self.product_s.setdefault(product, []).append(self.time_product(product))

    @property
    def kernels_fit(self) -> bool:
        """Whether our own kernels run on this device and dtype."""
        return self.device.type == "cpu" and self.dtype == torch.bfloat16 and avx512.most_rows() > 0

    def forget(self) -> None:
        """What was measured so far."""
        self.read_s.clear()
        self.product_s.clear()

    def ways_to_read(self) -> dict[str, Callable[[], object]]:
        """Each reads the whole buffer once; the copy reads half of it and writes it elsewhere, which is as many bytes."""
        flat, side = self.buffer, STREAM_SIDE
        matrices = flat[:flat.numel() // side**2 * side**2].view(-1, side, side)
        row = torch.ones(1, side, device=self.device, dtype=self.dtype)
        half = flat.numel() // 2

        def multiply() -> None:
            for matrix in matrices:
                functional.linear(row, matrix)

        def multiply_natively() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it speaks of Intel GPUs whenever this switch is touched
                with torch.backends.mkldnn.flags(enabled=False):
                    multiply()

        ways: dict[str, Callable[[], object]] = {
            "one-row products": self.at_once("one row", multiply), "sum": flat.view(torch.float32).sum,
            "copy": lambda: flat[:half].copy_(flat[half:2 * half])}
        if self.device.type == "cpu":
            ways["one-row products, oneDNN off"] = multiply_natively
        if self.kernels_fit:  # whatever the numbers mean in blocks
            ways["one-row products, our kernels"] = lambda: [avx512.multiply(row, matrix.data_ptr(), side, None) for matrix in matrices]
        return ways

    def time_product(self, product: Product) -> float:
        """Seconds for one, by the fastest of the plain and, on a CPU, the packed layout of the weight, and our own kernels."""
        size = product.inputs * product.outputs
        count = max(2, min(WARM_BYTES // (size * self.dtype.itemsize), MOST_MATRICES))
        weights = [self.buffer[index * size:(index + 1) * size].view(product.outputs, product.inputs)
                   for index in range(min(count, self.buffer.numel() // size))]
        rows = self.buffer[:product.rows * product.inputs].view(1, product.rows, product.inputs)

        def plain() -> None:
            for weight in weights:
                functional.linear(rows, weight)

        best_s = self.time(self.at_once(str(product), plain))
        if self.device.type == "cpu":
            packed = pack(weights)
            if packed:
                best_s = min(best_s, self.time(lambda: [multiply_packed(rows, weight) for weight in packed]))
        if self.kernels_fit and product.rows <= avx512.most_rows() and product.outputs % avx512.BLOCK == product.inputs % 2 == 0:
            best_s = min(best_s, self.time(lambda: [avx512.multiply(rows, weight.data_ptr(), product.outputs, None) for weight in weights]))
        return best_s / len(weights)

    def at_once(self, name: str, call: Callable[[], object]) -> Callable[[], object]:
        """On a GPU the call as a recorded graph, made once per name, so that not its launches are measured; elsewhere the call itself."""
        if self.device.type == "cuda" and name not in self.recorded:
            beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):  # libraries set themselves up at the first call, which cannot be recorded
                call()
            torch.cuda.current_stream().wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                call()
            self.recorded[name] = graph.replay
        return self.recorded.get(name, call)

    def time(self, call: Callable[[], object]) -> float:
        """Seconds of one call, the better of two."""
        seconds = []
        for _ in range(2):
            self.wait()
            before = time.perf_counter()
            call()
            self.wait()
            seconds.append(time.perf_counter() - before)
        return min(seconds)

    def wait(self) -> None:
        """Until the device has nothing left to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @property
    def read_bytes_per_s(self) -> float:
        """By the best way to read: the median of its measurements."""
        return max(self.rates().values())

    def read_rate(self) -> float:
        """Bytes per second now, by what is the best way so far. Memory that is shared with others may give twice as much a minute later, so
        a decoder pass is judged by what was read beside it."""
        best = max(self.rates(), key=self.rates().__getitem__)
        with torch.inference_mode():
            return self.buffer.nbytes / self.time(self.ways_to_read()[best])

    def rates(self) -> dict[str, float]:
        """Way of reading -> bytes per second, medians."""
        size = self.buffer.nbytes
        return {way: size / statistics.median(seconds) for way, seconds in self.read_s.items()}

    def product_ms(self, product: Product) -> float:
        """The median."""
        return statistics.median(self.product_s[product]) * 1e3

    def flop_per_s(self, product: Product) -> float:
        """What it was multiplied at."""
        return product.flop / (self.product_ms(product) / 1e3)

    def stage_ms(self, stage: str, bytes_per_weight: float | None = None, read_bytes_per_s: float | None = None) -> float:
        """The least time of a stage: its products at the rate measured for each, and one-row products at the rate of reading.

        bytes_per_weight: of the layers of the decoder, where they are not of the dtype. read_bytes_per_s: None for the best way's median.
        """
        total_ms, rate = 0.0, read_bytes_per_s or self.read_bytes_per_s
        for product, count in self.work[stage].items():
            if product.rows > 1:
                total_ms += count * self.product_ms(product)
            else:
                size = self.dtype.itemsize if bytes_per_weight is None or count == 1 else bytes_per_weight  # the head stays as it is
                total_ms += count * product.inputs * product.outputs * size / rate * 1e3
        return total_ms

    def to_mapping(self) -> dict[str, object]:
        """For JSON."""
        square = Product(SQUARE, SQUARE, SQUARE)
        return {
            "device": device_name(self.device), "dtype": str(self.dtype).removeprefix("torch."),
            "read_bytes_per_s": self.read_bytes_per_s, "ways_to_read": self.rates(), "matmul_flop_per_s": self.flop_per_s(square),
            "products": [{"stage": stage, "product": str(product), "count": count, "ms": self.product_ms(product),
                          "flop_per_s": self.flop_per_s(product)}
                         for stage, work in self.work.items() for product, count in work.items() if product.rows > 1],
            "stage_ms": {stage: self.stage_ms(stage) for stage in self.work},
        }


def pack(weights: list[Tensor]) -> list[Tensor]:
    """Laid out as oneDNN's kernels read them; nothing where this torch or this CPU cannot."""
    try:
        packed = [torch.ops.mkldnn._reorder_linear_weight(weight, None) for weight in weights]
        multiply_packed(torch.zeros(1, 2, weights[0].shape[1], dtype=weights[0].dtype), packed[0])
    except (AttributeError, RuntimeError):
        return []
    return packed


def multiply_packed(rows: Tensor, weight: Tensor) -> Tensor:
    """[1, R, inputs] by a packed weight."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")  # type: ignore[no-any-return]


def device_name(device: torch.device) -> str:
    """What a person calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"

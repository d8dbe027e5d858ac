"""Which weights are kept in few bits, and how: by bitsandbytes (int8, nf4), imported when asked for, or by our w8a8. None is exact."""

from __future__ import annotations

import logging
from ctypes import CDLL
from types import ModuleType

import torch
from torch import Tensor, nn

from openvla_ros.errors import ConfigurationError, DependencyMissing

BY_BITSANDBYTES = ("int8", "nf4")

BYTES_PER_WEIGHT = {"int8": 1.0, "nf4": 0.52, "w8a8": 1.01}
"""Kept per weight: one byte and a scale per row, or NF4's half a byte and its doubly quantised scales."""

WIDTH_STEP = 32
"""What the library's kernels count in."""

TRANSIENT_BYTES_PER_WEIGHT = {"int8": 17, "nf4": 17, "w8a8": 17}
"""Peak while one tensor is being quantised, beside what is kept (measured with NF4 on the CPU: 0.77 GB for 45 M weights). w8a8 joins two
tensors, and has them as they were, joined, in float32 and in 8 bits."""

NOTES = {
    "none": "",
    "int8": "int8 quantisation (bitsandbytes): actions are not exactly those of the unquantised model",
    "nf4": "NF4 4-bit quantisation (bitsandbytes): actions are not exactly those of the unquantised model",
    "w8a8": "w8a8 quantisation (weights and activations of the decoder in 8 bits): actions are not exactly those of the unquantised model",
}


def is_quantized(name: str) -> bool:
    """Whether a weight is stored in few bits: the decoder's large matrices, which are 86 % of a 7B model.

    The output head stays exact, since it ranks neighbouring action bins; the towers are small and sensitive.
    """
    return name.startswith("language_model.model.layers.") and name.endswith("_proj.weight")


def import_bitsandbytes() -> ModuleType:
    """The package, or DependencyMissing with the way to install it."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns on every single product about a cast that is meant
    try:
        import bitsandbytes
    except Exception as error:  # a wrong CUDA set-up raises other things than ImportError
        raise DependencyMissing(f"quantization needs the package bitsandbytes, which cannot be imported here ({error}). "
                                "Install it with: pip install bitsandbytes; or use quantization none.") from error
    return bitsandbytes


def return_freed_memory() -> None:
    """Let the C library give freed pages back to the system, where it has a call for that (glibc).

    Without it the small buffers of quantising stay in its heap: 165 instead of 102 MB per layer of a 7B model.
    """
    trim = getattr(CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def quantize_linear(weight: Tensor, mode: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A linear layer without bias that keeps `weight` [outputs, inputs] in few bits. mode: int8 or nf4. `weight` may be freed after.

    Raises ConfigurationError for widths that the library cannot take.
    """
    library = import_bitsandbytes()
    outputs, inputs = weight.shape
    if outputs % WIDTH_STEP or inputs % WIDTH_STEP:
        raise ConfigurationError(f"quantization {mode} needs layer widths that are multiples of {WIDTH_STEP}, but this model has a layer "
                                 f"from {inputs} to {outputs} features. Use quantization none.")
    source = weight.to("cpu", torch.float16 if mode == "int8" else dtype, copy=True)  # bitsandbytes quantises on the way to `device`
    with torch.device("meta"):
        if mode == "int8":
            layer = library.nn.Linear8bitLt(inputs, outputs, bias=False, has_fp16_weights=False, threshold=6.0)
        else:
            layer = library.nn.Linear4bit(inputs, outputs, bias=False, compute_dtype=dtype, quant_type="nf4")
    if mode == "int8":
        layer.weight = library.nn.Int8Params(source, requires_grad=False, has_fp16_weights=False).to(device)
    else:
        layer.weight = library.nn.Params4bit(source, requires_grad=False, quant_type="nf4", compress_statistics=True,
                                             module=layer).to(device)
    layer.eval()
    if device.type == "cpu":
        # On some CPUs the library rearranges an NF4 weight when it is first used. Now, while little else is in memory; not in a prefill.
        with torch.no_grad():
            layer(torch.zeros(1, inputs, dtype=dtype))
    return_freed_memory()
    return layer  # type: ignore[no-any-return]

"""The graph with its weights in 8-bit integers: half the size, three times as fast, less exact."""

import tempfile
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from handler.precision import PRECISIONS


def save(model: onnx.ModelProto, directory: Path) -> None:
    """Write ``visual.int8.onnx``: `model` with the weights of its matrix products in integers.

    `model` is `graph.build`'s with ``halve=False``. Each column of the weights has a scale of its
    own. Activations have one scale for a whole matrix, found anew for each inference. Weights use
    7 of the 8 bits: processors without VNNI, which Lambda may give, add pairs of products in 16
    bits, and 8-bit weights would overflow them.
    """
    with tempfile.TemporaryDirectory() as scratch:
        fp32 = Path(scratch) / "visual.onnx"
        onnx.save(model, fp32)
        quantize_dynamic(
            fp32,
            directory / PRECISIONS["int8"].file,
            op_types_to_quantize=["MatMul"],
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            extra_options={"MatMulConstBOnly": True},
        )

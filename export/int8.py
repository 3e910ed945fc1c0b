"""The same graph with its matrices in integers: smaller and faster, and only as exact as its gate
says.
"""

import tempfile
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic


def save(model: onnx.ModelProto, directory: Path) -> None:
    """Write ``visual.int8.onnx``: `model`, of `graph.build` without `halve`, its matrices in
    integers.

    Weights get one scale a column, activations one a matrix, found as they come. Seven bits,
    because x86 without VNNI, which Lambda does not promise, adds pairs of products in 16 bits and
    saturates.
    """
    with tempfile.TemporaryDirectory() as scratch:
        fp32 = Path(scratch) / "visual.onnx"
        onnx.save(model, fp32)
        quantize_dynamic(
            fp32,
            directory / "visual.int8.onnx",
            op_types_to_quantize=["MatMul"],
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            extra_options={"MatMulConstBOnly": True},
        )

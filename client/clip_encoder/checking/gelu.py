"""What the model would make of an image with the usual GELU in the place of CLIP's QuickGELU.

OpenAI trained with ``x * sigmoid(1.702 x)``. Whoever loads the weights into a network with the
exact GELU, ``x * Phi(x)``, gets vectors that are near, and wrong. Here the exported graph is
changed to do the same.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_encoder.errors import EncoderError

GRAPH = "visual.onnx"
SLOPE = 1.702
"""QuickGELU's number, which the graph multiplies by before the sigmoid."""


def encode(model_dir: Path, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """RGB pixels [n, 224, 224, 3] -> float32 [n, 512], of unit length, as GELU makes them.

    Raises:
        EncoderError: a package is missing, or the folder holds no such model.
    """
    try:
        import onnx  # here: only this trial needs them
        import onnxruntime
    except ImportError as error:
        detail = "trying GELU needs onnx and onnxruntime: pip install onnx onnxruntime"
        raise EncoderError("missing_package", detail) from error
    path = model_dir / GRAPH
    if not path.exists():
        raise EncoderError("model_unusable", f"{path}: no such file")
    model = onnx.load(path, load_external_data=False)
    if not _replace(model, onnx.helper):
        raise EncoderError("model_unusable", f"{path} has no QuickGELU to be replaced")
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(model_dir)
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    rows = [session.run(["embeddings"], {"pixels": image[None]})[0] for image in pixels]
    return np.concatenate(rows)


def _replace(model: Any, helper: Any) -> int:
    """Put ``Phi(u / 1.702)`` where the graph has ``sigmoid(u)``; gives how often."""
    nodes, replaced = [], 0
    constants = {"gelu_scale": 1 / (SLOPE * math.sqrt(2)), "gelu_one": 1.0, "gelu_half": 0.5}
    for node in model.graph.node:
        if node.op_type != "Sigmoid":
            nodes.append(node)
            continue
        replaced += 1
        name, (u,), (result,) = f"gelu_{replaced}", node.input, node.output
        nodes += [
            helper.make_node("Mul", [u, "gelu_scale"], [f"{name}_a"]),
            helper.make_node("Erf", [f"{name}_a"], [f"{name}_b"]),
            helper.make_node("Add", [f"{name}_b", "gelu_one"], [f"{name}_c"]),
            helper.make_node("Mul", [f"{name}_c", "gelu_half"], [result]),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(
        helper.make_tensor(name, 1, [], [value]) for name, value in constants.items()
    )
    return replaced

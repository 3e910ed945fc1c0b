"""clip's ``VisionTransformer`` as an ONNX graph, written out layer by layer.

Read it beside ``clip/model.py``: the same steps in the same order, with four differences, none of
which changes the function computed:

- input is uint8 RGB: ``(x / 255 - mean) / std`` is linear, so it is part of the patch embedding;
- the patch embedding, a convolution whose stride is its size, is one matrix product;
- attention's ``1 / sqrt(64)`` scales the scores, not the queries (a power of two: exact);
- in the last block only the class token is read afterwards, so only its query, output projection
  and MLP are computed.

Weights that are exactly representable in fp16, as all of OpenAI's matrices are, are stored in fp16
and cast when the session loads: half the file for the same numbers.
"""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 21
IR_VERSION = 10
ONNX_RUNTIME = "com.microsoft"
"""The domain of the operators that are ONNX Runtime's own."""
PATCH, GRID, WIDTH, HEADS, LAYERS, EMBEDDING = 32, 7, 768, 12, 12, 512
HEAD = WIDTH // HEADS

Matrix = NDArray[np.float32]
Weights = dict[str, Matrix]
"""The image tower's state dict (``model.visual``): name -> values."""


class Linear(Protocol):
    """How a linear layer is written: `Float` here, ``export/int8.py`` has one in integers.

    Both methods write ``x @ weight.T + bias`` and return the name of its value. `weight` is as
    torch stores it: [out, in].
    """

    def __call__(self, g: "Graph", x: str, name: str, weight: Matrix, bias: Matrix) -> str:
        """The layer `name` over float32 [..., in]."""

    def of_pixels(self, g: "Graph", x: str, name: str, weight: Matrix, bias: Matrix) -> str:
        """The same over uint8 [..., in]."""


class Graph:
    """Collects nodes and initializers; every method returns the name of a value."""

    def __init__(self, *, halve: bool, linear: Linear) -> None:
        self.halve = halve
        self.linear = linear
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs = [_info("pixels", TensorProto.UINT8, "n", 224, 224, 3)]
        self.outputs: list[onnx.ValueInfoProto] = []

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output."""
        (output,) = self.ops(1, kind, *inputs, **attributes)
        return output

    def ops(self, outputs: int, kind: str, *inputs: str, **attributes: Any) -> list[str]:
        """A node with several outputs."""
        names = [f"{kind}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names

    def constant(self, *values: int) -> str:
        """An int64 vector."""
        return self.initializer(f"constant_{len(self.initializers)}", np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        """A float32 number."""
        return self.initializer(f"constant_{len(self.initializers)}", np.array(value, np.float32))

    def weight(self, name: str, value: Matrix) -> str:
        """A float32 value, stored in half the bytes where that loses nothing."""
        half = value.astype(np.float16)
        worth_it = self.halve and value.size >= 1024
        if not worth_it or not np.array_equal(half.astype(np.float32), value):
            return self.initializer(name, value.astype(np.float32))
        return self.op("Cast", self.initializer(name, half), to=TensorProto.FLOAT)

    def layer_norm(self, x: str, name: str, weights: Weights) -> str:
        """The LayerNorm `name`, with its gain and bias."""
        scale = self.weight(f"{name}.weight", weights[f"{name}.weight"])
        bias = self.weight(f"{name}.bias", weights[f"{name}.bias"])
        return self.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-5)

    def input(self, name: str, kind: int, *shape: int | str) -> str:
        """One more input of the whole graph, unless it has it already."""
        if all(known.name != name for known in self.inputs):
            self.inputs.append(_info(name, kind, *shape))
        return name

    def output(self, name: str, *shape: int | str) -> None:
        """Make a float32 value an output of the whole graph, unless it is one already."""
        if all(known.name != name for known in self.outputs):
            self.outputs.append(_info(name, TensorProto.FLOAT, *shape))

    def initializer(self, name: str, value: NDArray[np.generic]) -> str:
        """A value as it is."""
        self.initializers.append(numpy_helper.from_array(value, name))
        return name


class Float:
    """A linear layer in float32."""

    def __call__(self, g: Graph, x: str, name: str, weight: Matrix, bias: Matrix) -> str:
        """See `Linear`."""
        product = g.op("MatMul", x, g.weight(f"{name}.weight", np.ascontiguousarray(weight.T)))
        return g.op("Add", product, g.weight(f"{name}.bias", bias))

    def of_pixels(self, g: Graph, x: str, name: str, weight: Matrix, bias: Matrix) -> str:
        """See `Linear`."""
        return self(g, g.op("Cast", x, to=TensorProto.FLOAT), name, weight, bias)


FLOAT = Float()


def build(
    weights: Weights,
    mean: NDArray[np.float64],
    std: NDArray[np.float64],
    *,
    halve: bool = True,
    linear: Linear = FLOAT,
) -> onnx.ModelProto:
    """The image tower's weights -> its graph.

    The graph takes ``pixels``, uint8 [n, 224, 224, 3], and gives ``embeddings``, float32 [n, 512]
    of unit length. `halve`: store weights in fp16 where that loses nothing. `linear` writes every
    linear layer but the last projection, which is of one token and always in float.
    """
    g = Graph(halve=halve, linear=linear)
    x = _patch_embedding(g, weights, mean, std)  # [n, 50, 768]
    x = g.layer_norm(x, "ln_pre", weights)
    for layer in range(LAYERS):
        x = _block(g, x, f"transformer.resblocks.{layer}", weights, last=layer == LAYERS - 1)
    x = g.op("Reshape", x, g.constant(-1, WIDTH))  # [n, 1, 768] -> [n, 768]
    x = g.layer_norm(x, "ln_post", weights)
    x = g.op("MatMul", x, g.weight("proj", weights["proj"]))  # [n, 512]
    g.nodes.append(helper.make_node("LpNormalization", [x], ["embeddings"], axis=-1, p=2))
    g.output("embeddings", "n", EMBEDDING)
    graph = helper.make_graph(
        g.nodes,
        "clip-vit-b-32-visual",
        g.inputs,
        g.outputs,
        g.initializers,
    )
    opsets = [helper.make_opsetid("", OPSET)]
    if any(node.domain for node in g.nodes):
        opsets.append(helper.make_opsetid(ONNX_RUNTIME, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def _info(name: str, kind: int, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _patch_embedding(
    g: Graph, weights: Weights, mean: NDArray[np.float64], std: NDArray[np.float64]
) -> str:
    # conv1 is [768, 3, 32, 32]. Each channel's (x / 255 - mean) / std becomes part of it, computed
    # in float64.
    kernel = weights["conv1.weight"].astype(np.float64)
    scaled = (kernel / (255 * std[:, None, None])).transpose(0, 2, 3, 1)  # [768, 32, 32, 3]
    bias = -(kernel * (mean / std)[:, None, None]).sum(axis=(1, 2, 3))  # [768]

    x = g.op("Reshape", "pixels", g.constant(-1, GRID, PATCH, GRID, PATCH, 3))
    x = g.op("Transpose", x, perm=[0, 1, 3, 2, 4, 5])  # [n, 7, 7, 32, 32, 3]
    x = g.op("Reshape", x, g.constant(-1, GRID * GRID, PATCH * PATCH * 3))  # [n, 49, 3072]
    matrix = scaled.reshape(WIDTH, -1).astype(np.float32)
    x = g.linear.of_pixels(g, x, "conv1", matrix, bias.astype(np.float32))  # [n, 49, 768]

    n = g.op("Shape", x, start=0, end=1)
    shape = g.op("Concat", n, g.constant(1, WIDTH), axis=0)
    cls = g.weight("class_embedding", weights["class_embedding"])  # [768]
    cls = g.op("Expand", cls, shape)  # [n, 1, 768]
    x = g.op("Concat", cls, x, axis=1)  # [n, 50, 768]
    return g.op("Add", x, g.weight("positional_embedding", weights["positional_embedding"]))


def _block(g: Graph, x: str, name: str, weights: Weights, *, last: bool) -> str:
    """ResidualAttentionBlock: [n, 50, 768] -> [n, 50, 768], or [n, 1, 768] for the last one."""
    y = g.layer_norm(x, f"{name}.ln_1", weights)
    in_weight = weights[f"{name}.attn.in_proj_weight"]  # [3 * 768, 768]: queries, keys, values
    in_bias = weights[f"{name}.attn.in_proj_bias"]
    if last:
        first = g.constant(0)
        x = g.op("Gather", x, first, axis=1)  # [n, 1, 768]
        q = g.op("Gather", y, first, axis=1)
        q = g.linear(g, q, f"{name}.attn.q", in_weight[:WIDTH], in_bias[:WIDTH])
        kv = g.linear(g, y, f"{name}.attn.kv", in_weight[WIDTH:], in_bias[WIDTH:])
        k, v = g.ops(2, "Split", kv, axis=-1, num_outputs=2)
    else:
        qkv = g.linear(g, y, f"{name}.attn.qkv", in_weight, in_bias)  # [n, 50, 3 * 768]
        q, k, v = g.ops(3, "Split", qkv, axis=-1, num_outputs=3)
    attended = _attention(g, q, k, v)
    out_proj = (weights[f"{name}.attn.out_proj.{part}"] for part in ("weight", "bias"))
    x = g.op("Add", x, g.linear(g, attended, f"{name}.attn.out_proj", *out_proj))

    y = g.layer_norm(x, f"{name}.ln_2", weights)
    c_fc = (weights[f"{name}.mlp.c_fc.{part}"] for part in ("weight", "bias"))
    y = g.linear(g, y, f"{name}.mlp.c_fc", *c_fc)  # [n, 50, 3072]
    y = _quick_gelu(g, y)
    c_proj = (weights[f"{name}.mlp.c_proj.{part}"] for part in ("weight", "bias"))
    return g.op("Add", x, g.linear(g, y, f"{name}.mlp.c_proj", *c_proj))


def _attention(g: Graph, q: str, k: str, v: str) -> str:
    """Scaled dot-product attention over 12 heads: [n, t, 768] x 2 [n, 50, 768] -> [n, t, 768]."""
    heads = g.constant(0, 0, HEADS, HEAD)
    q = g.op("Transpose", g.op("Reshape", q, heads), perm=[0, 2, 1, 3])  # [n, 12, t, 64]
    k = g.op("Transpose", g.op("Reshape", k, heads), perm=[0, 2, 3, 1])  # [n, 12, 64, 50]
    v = g.op("Transpose", g.op("Reshape", v, heads), perm=[0, 2, 1, 3])  # [n, 12, 50, 64]
    scores = g.op("Mul", g.op("MatMul", q, k), g.scalar(HEAD**-0.5))  # fused with the product
    scores = g.op("Softmax", scores, axis=-1)  # [n, 12, t, 50]
    attended = g.op("Transpose", g.op("MatMul", scores, v), perm=[0, 2, 1, 3])  # [n, t, 12, 64]
    return g.op("Reshape", attended, g.constant(0, 0, WIDTH))


def _quick_gelu(g: Graph, x: str) -> str:
    """``x * sigmoid(1.702 x)``; ONNX Runtime fuses the three nodes into one."""
    return g.op("Mul", x, g.op("Sigmoid", g.op("Mul", x, g.scalar(1.702))))


def session(model: bytes) -> ort.InferenceSession:
    """A serialized graph, ready to be run on all CPUs."""
    options = ort.SessionOptions()
    # Threads that spin while they wait take the CPU from whatever else runs beside the export.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model, options)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Check the graph, write it to `path`, and its weights beside it in ``<name>.data``.

    There ONNX Runtime maps them into memory. Weights within the graph's file it would copy twice,
    which is a quarter of its time to load int8.
    """
    onnx.checker.check_model(model)
    data = path.with_name(f"{path.name}.data")
    onnx.save(
        model,
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=data.name,
        size_threshold=1024,
    )
    data.chmod(0o644)  # onnx lets only the owner read the file; Lambda runs as another user

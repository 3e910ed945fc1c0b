"""clip's two towers as ONNX graphs, written out layer by layer.

Read it beside ``clip/model.py``: the same steps in the same order, with these differences, none of
which changes the function computed:

- images are uint8 RGB: ``(x / 255 - mean) / std`` is linear, so it is part of the patch embedding;
- the patch embedding, a convolution whose stride is its size, is one matrix product;
- texts are not padded to 77 tokens: no token sees later ones;
- attention's ``1 / sqrt(head width)`` scales the scores, not the queries (for 64 numbers a head, as
  in most models, it is a power of two: exact);
- of the last block only one token is read afterwards (an image's class token, a text's end), so
  only its query, output projection and MLP are computed.

Weights that are exactly representable in fp16, as all of OpenAI's matrices are, are stored in fp16
and cast when the session loads: half the file for the same numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from handler.model import Architecture

OPSET = 21
IR_VERSION = 10
ONNX_RUNTIME = "com.microsoft"
"""The domain of the operators that are ONNX Runtime's own."""
Matrix = NDArray[np.float32]
Weights = dict[str, Matrix]
"""A tower's state dict: name -> values."""
Inputs = Sequence[NDArray[np.generic]]
"""What a tower takes, one by one: uint8 [side, side, 3] of an image, or int32 [t] of a text."""


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

    def __init__(
        self, name: str, *, halve: bool, linear: Linear, activation: str = "quick_gelu"
    ) -> None:
        self.name = name
        self.activation = activation
        self.halve = halve
        self.linear = linear
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
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

    def rows(self, name: str, table: Matrix, indices: str) -> str:
        """Rows of a table: `indices` [...] -> float32 [..., width].

        Where the table is stored in fp16, it stays so: only the rows that are asked for are read
        and widened.
        """
        half = table.astype(np.float16)
        is_half = self.halve and np.array_equal(half.astype(np.float32), table)
        rows = self.op("Gather", self.initializer(name, half if is_half else table), indices)
        return self.op("Cast", rows, to=TensorProto.FLOAT) if is_half else rows

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


def build_image(
    weights: Weights,
    architecture: Architecture,
    mean: NDArray[np.float64],
    std: NDArray[np.float64],
    *,
    halve: bool = True,
    linear: Linear = FLOAT,
) -> onnx.ModelProto:
    """The image tower's weights (``model.visual``) -> its graph.

    The graph takes ``pixels``, uint8 [n, side, side, 3], and gives ``embeddings``, float32
    [n, embedding size] of unit length. `halve`: store weights in fp16 where that loses nothing.
    `linear` writes every linear layer but the last projection, which is of one token and always in
    float.
    """
    g = Graph("clip-image", halve=halve, linear=linear, activation=architecture.activation)
    x = _patch_embedding(g, weights, architecture, mean, std)  # [n, tokens, width]
    x = g.layer_norm(x, "ln_pre", weights)
    first = g.constant(0)
    heads = architecture.image_width // architecture.image_head_width

    def class_token(x: str) -> str:
        return g.op("Gather", x, first, axis=1)  # [n, 1, width]

    for layer in range(architecture.image_layers):
        only = class_token if layer == architecture.image_layers - 1 else None
        x = _block(g, x, f"transformer.resblocks.{layer}", weights, heads, only=only)
    x = g.layer_norm(x, "ln_post", weights)
    return _unit_vectors(g, x, "proj", weights)


def build_text(
    weights: Weights,
    architecture: Architecture,
    *,
    halve: bool = True,
    linear: Linear = FLOAT,
) -> onnx.ModelProto:
    """The text tower's weights -> its graph.

    The graph takes ``tokens``, int32 [n, t] with t of at most 77, and gives ``embeddings``, float32
    [n, embedding size] of unit length. What follows a text's end has no influence. `halve` and
    `linear` are as for `build_image`.
    """
    g = Graph("clip-text", halve=halve, linear=linear, activation=architecture.activation)
    tokens = g.input("tokens", TensorProto.INT32, "n", "t")
    x = g.rows("token_embedding.weight", weights["token_embedding.weight"], tokens)  # [n, t, width]
    length = g.op("Shape", tokens, start=1, end=2)
    positions = g.weight("positional_embedding", weights["positional_embedding"])  # [77, width]
    x = g.op("Add", x, g.op("Slice", positions, g.constant(0), length))
    mask = _causal_mask(g, length, architecture.context_length)  # [t, t]
    # The end of a text has the highest of all token ids, and may be there more than once.
    end = g.op("ArgMax", tokens, axis=1, keepdims=1)  # [n, 1]

    def end_token(x: str) -> str:
        x = g.op("GatherND", x, end, batch_dims=1)  # [n, width]
        return g.op("Unsqueeze", x, g.constant(1))  # [n, 1, width]

    heads = architecture.text_heads
    for layer in range(architecture.text_layers - 1):
        x = _block(g, x, f"transformer.resblocks.{layer}", weights, heads, mask=mask)
    seen = g.op("Unsqueeze", g.op("Gather", mask, end, axis=0), g.constant(1))  # [n, 1, 1, t]
    last = f"transformer.resblocks.{architecture.text_layers - 1}"
    x = _block(g, x, last, weights, heads, only=end_token, mask=seen)
    x = g.layer_norm(x, "ln_final", weights)
    return _unit_vectors(g, x, "text_projection", weights)


def _unit_vectors(g: Graph, x: str, projection: str, weights: Weights) -> onnx.ModelProto:
    """The whole graph, which ends with [n, 1, width] -> [n, embedding size] of unit length."""
    width, size = weights[projection].shape
    x = g.op("Reshape", x, g.constant(-1, width))
    x = g.op("MatMul", x, g.weight(projection, weights[projection]))
    g.nodes.append(helper.make_node("LpNormalization", [x], ["embeddings"], axis=-1, p=2))
    g.output("embeddings", "n", size)
    graph = helper.make_graph(g.nodes, g.name, g.inputs, g.outputs, g.initializers)
    opsets = [helper.make_opsetid("", OPSET)]
    if any(node.domain for node in g.nodes):
        opsets.append(helper.make_opsetid(ONNX_RUNTIME, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def _info(name: str, kind: int, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _patch_embedding(
    g: Graph,
    weights: Weights,
    architecture: Architecture,
    mean: NDArray[np.float64],
    std: NDArray[np.float64],
) -> str:
    side, patch, width = architecture.resolution, architecture.patch, architecture.image_width
    grid = side // patch
    # conv1 is [width, 3, patch, patch]. Each channel's (x / 255 - mean) / std becomes part of it,
    # computed in float64.
    kernel = weights["conv1.weight"].astype(np.float64)
    scaled = (kernel / (255 * std[:, None, None])).transpose(0, 2, 3, 1)  # [width, patch, patch, 3]
    bias = -(kernel * (mean / std)[:, None, None]).sum(axis=(1, 2, 3))  # [width]

    x = g.input("pixels", TensorProto.UINT8, "n", side, side, 3)
    x = g.op("Reshape", x, g.constant(-1, grid, patch, grid, patch, 3))
    x = g.op("Transpose", x, perm=[0, 1, 3, 2, 4, 5])  # [n, grid, grid, patch, patch, 3]
    x = g.op("Reshape", x, g.constant(-1, grid * grid, patch * patch * 3))
    matrix = scaled.reshape(width, -1).astype(np.float32)
    x = g.linear.of_pixels(g, x, "conv1", matrix, bias.astype(np.float32))  # [n, patches, width]

    n = g.op("Shape", x, start=0, end=1)
    shape = g.op("Concat", n, g.constant(1, width), axis=0)
    cls = g.weight("class_embedding", weights["class_embedding"])  # [width]
    cls = g.op("Expand", cls, shape)  # [n, 1, width]
    x = g.op("Concat", cls, x, axis=1)  # [n, 1 + patches, width]
    return g.op("Add", x, g.weight("positional_embedding", weights["positional_embedding"]))


def _causal_mask(g: Graph, length: str, context: int) -> str:
    """What is added to the scores, so that no token sees later ones: 0 and -inf, [t, t]."""
    mask = np.triu(np.full((context, context), -np.inf, np.float32), k=1)
    size = g.op("Concat", length, length, axis=0)
    return g.op("Slice", g.initializer("mask", mask), g.constant(0, 0), size)


def _block(
    g: Graph,
    x: str,
    name: str,
    weights: Weights,
    heads: int,
    *,
    only: Callable[[str], str] | None = None,
    mask: str = "",
) -> str:
    """ResidualAttentionBlock: [n, t, width] -> the same.

    `only`: of its output one token is read, which this takes out of [n, t, width]; the block then
    gives [n, 1, width]. `mask` is added to the scores of attention.
    """
    y = g.layer_norm(x, f"{name}.ln_1", weights)
    in_weight = weights[f"{name}.attn.in_proj_weight"]  # [3 * width, width]: queries, keys, values
    in_bias = weights[f"{name}.attn.in_proj_bias"]
    width = in_weight.shape[1]
    if only:
        x, q = only(x), only(y)
        q = g.linear(g, q, f"{name}.attn.q", in_weight[:width], in_bias[:width])
        kv = g.linear(g, y, f"{name}.attn.kv", in_weight[width:], in_bias[width:])
        k, v = g.ops(2, "Split", kv, axis=-1, num_outputs=2)
    else:
        qkv = g.linear(g, y, f"{name}.attn.qkv", in_weight, in_bias)  # [n, t, 3 * width]
        q, k, v = g.ops(3, "Split", qkv, axis=-1, num_outputs=3)
    attended = _attention(g, q, k, v, heads=heads, width=width, mask=mask)
    out_proj = (weights[f"{name}.attn.out_proj.{part}"] for part in ("weight", "bias"))
    x = g.op("Add", x, g.linear(g, attended, f"{name}.attn.out_proj", *out_proj))

    y = g.layer_norm(x, f"{name}.ln_2", weights)
    c_fc = (weights[f"{name}.mlp.c_fc.{part}"] for part in ("weight", "bias"))
    y = g.linear(g, y, f"{name}.mlp.c_fc", *c_fc)  # [n, t, 4 * width]
    y = _ACTIVATIONS[g.activation](g, y)
    c_proj = (weights[f"{name}.mlp.c_proj.{part}"] for part in ("weight", "bias"))
    return g.op("Add", x, g.linear(g, y, f"{name}.mlp.c_proj", *c_proj))


def _attention(g: Graph, q: str, k: str, v: str, *, heads: int, width: int, mask: str) -> str:
    """Scaled dot-product attention: q [n, queries, width], k and v [n, t, width] -> like q."""
    head_width = width // heads
    shape = g.constant(0, 0, heads, head_width)
    q = g.op("Transpose", g.op("Reshape", q, shape), perm=[0, 2, 1, 3])  # [n, heads, queries, 64]
    k = g.op("Transpose", g.op("Reshape", k, shape), perm=[0, 2, 3, 1])  # [n, heads, 64, t]
    v = g.op("Transpose", g.op("Reshape", v, shape), perm=[0, 2, 1, 3])  # [n, heads, t, 64]
    scale = g.scalar(head_width**-0.5)
    scores = g.op("Mul", g.op("MatMul", q, k), scale)  # fused with the product
    if mask:
        scores = g.op("Add", scores, mask)
    scores = g.op("Softmax", scores, axis=-1)  # [n, heads, queries, t]
    attended = g.op("Transpose", g.op("MatMul", scores, v), perm=[0, 2, 1, 3])
    return g.op("Reshape", attended, g.constant(0, 0, width))


def _quick_gelu(g: Graph, x: str) -> str:
    """``x * sigmoid(1.702 x)``; ONNX Runtime fuses the three nodes into one."""
    return g.op("Mul", x, g.op("Sigmoid", g.op("Mul", x, g.scalar(1.702))))


def _gelu(g: Graph, x: str) -> str:
    """``x * (1 + erf(x / sqrt(2))) / 2``."""
    return g.op("Gelu", x)


_ACTIVATIONS = {"quick_gelu": _quick_gelu, "gelu": _gelu}
"""As in `Architecture.activation`."""


def session(model: bytes) -> ort.InferenceSession:
    """A serialized graph, ready to be run on all CPUs."""
    options = ort.SessionOptions()
    # Threads that spin while they wait take the CPU from whatever else runs beside the export.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model, options)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write the graph to `path`, its weights beside it in ``<name>.data``, and check it.

    There ONNX Runtime maps them into memory. Weights within the graph's file it would copy twice,
    which is a quarter of its time to load int8.
    """
    data = path.with_name(f"{path.name}.data")
    onnx.save(
        model,
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=data.name,
        size_threshold=1024,
    )
    # By its path, because protobuf has no message of more than 2 GB, such as ViT-H/14's weights.
    onnx.checker.check_model(path)
    data.chmod(0o644)  # onnx lets only the owner read the file; Lambda runs as another user


def grouped(inputs: Inputs, most: int) -> Iterator[NDArray[np.generic]]:
    """`inputs` in their order, in batches of one shape and at most so many."""
    batch: list[NDArray[np.generic]] = []
    for given in inputs:
        if len(batch) == most or (batch and batch[0].shape != given.shape):
            yield np.stack(batch)
            batch = []
        batch.append(given)
    if batch:
        yield np.stack(batch)

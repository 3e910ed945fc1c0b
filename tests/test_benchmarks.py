"""The benchmark's arithmetic. Its measurements are tried by `make bench ARGS=--quick`."""

from pathlib import Path

import onnx
import pytest

from benchmarks import instructions, report, sizes


def test_the_work_of_an_image_is_that_of_the_exported_graph(model_dir: Path) -> None:
    graph = onnx.shape_inference.infer_shapes(
        onnx.load(model_dir / "visual.onnx", load_external_data=False)
    ).graph
    shapes = {
        v.name: [d.dim_value or 1 for d in v.type.tensor_type.shape.dim] for v in graph.value_info
    }
    shapes |= {initializer.name: list(initializer.dims) for initializer in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    assert len(products) == 1 + 12 * 6 + 1 + 1  # the last block has one more
    work = 0
    for node in products:
        *outer, inner = shapes[node.input[0]]
        columns = shapes[node.input[1]][-1]
        rows = 1
        for side in outer:
            rows *= side
        work += 2 * rows * inner * columns
    assert report.gflop(1) == pytest.approx(work / 1e9, rel=1e-3)


def test_the_installed_size_is_of_all_that_the_function_needs() -> None:
    """boto3 and botocore were left out once: 27 MB."""
    packages = sizes.runtime()
    assert {"boto3", "onnxruntime", "starlette"} <= set(packages)
    without = [name for name in packages if name != "boto3"]
    assert sizes.packages(packages) - sizes.packages(without) > 20


def test_a_million_requests_cost_what_aws_lists() -> None:
    # 100 ms at 1 GB: 100,000 GB-seconds at 0.0000166667, and 0.20 for the requests.
    assert report.dollars_per_million(0.1, 1024, "x86") == pytest.approx(1.66667 + 0.20)
    assert report.dollars_per_million(0.1, 2048, "arm64") == pytest.approx(2 * 1.33334 + 0.20)


def test_valgrinds_report_is_read() -> None:
    report = """\
Ir
666,686,720 (100.0%)  PROGRAM TOTALS

Ir                    file:function
568,192,176 (85.23%)  ???:0x0000000001913050 [/lib/onnxruntime/capi/onnxruntime_pybind11_state.so]
 11,599,492 ( 1.74%)  ???:0x000000000191cbc0 [/lib/onnxruntime/capi/onnxruntime_pybind11_state.so]
  1,366,144 ( 0.20%)  ./string/memmove.S:__memcpy_avx_unaligned_erms [/usr/lib/libc.so.6]
"""
    counts = {"0x0000000001913050": 568_192_176, "0x000000000191cbc0": 11_599_492}
    assert instructions.parse(report) == counts

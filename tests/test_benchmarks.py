"""The benchmark's arithmetic, its tables, and that it goes on without what is not installed.

All its measurements are tried by `make bench ARGS=--quick`; here are those of what is installed.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")

from benchmarks import __main__ as benchmark
from benchmarks import chart, engines, instructions, measure, report, servers, sizes
from events.generate import MULTIPART, multipart, rest
from export import parity
from handler.engines.torch_clip import import_clip
from handler.model import Model
from handler.text.tokenizer import Tokenizer
from tests.conftest import ROOT, pixels_of

if TYPE_CHECKING:
    from export.checkpoint import Reference

PLAN = benchmark.Plan(cold=1, cold_cache=1, rounds=2, per_round=1, server_starts=2, judged=None)


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


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Path:
    """The benchmark's folder: a model, an upload, and two files to be judged by.

    The second file is no image.
    """
    directory = tmp_path_factory.mktemp("inputs")
    (directory / "model").symlink_to(model_dir.resolve())
    (directory / "event.json").write_bytes((ROOT / "events/rest_multipart.json").read_bytes())
    judged = directory / "judged"
    judged.mkdir()
    model = Model.load(model_dir)
    (judged / "0.image").write_bytes(model.towers["image"].golden.input)
    (judged / "1.image").write_bytes(b"no image")
    golden = pixels_of(model.towers["image"].golden.input)
    np.save(judged / "pixels.npy", np.stack([golden, 255 - golden]))
    np.save(judged / "vectors.npy", np.stack([model.towers["image"].golden.embedding] * 2))
    golden_text = model.towers["text"].golden
    (judged / "texts.json").write_text(json.dumps([golden_text.input.decode(), "another"]))
    np.save(judged / "texts.npy", np.stack([golden_text.embedding] * 2))
    (directory / "texts.json").write_text(
        json.dumps({name: ["a photo"] * (index + 1) for index, name in enumerate(benchmark.TEXTS)})
    )
    return directory


def test_exactness_is_the_cosine_to_clips_vectors_and_shows_what_was_refused(inputs: Path) -> None:
    process = measure.Process("exact", inputs, threads=1)
    try:
        of_files = process.ask("exactness", pictures=None)
        of_pixels = process.ask("tower_exactness", pictures=None)
        assert len(process.ask("exactness", pictures=1)) == 1
    finally:
        process.end()
    assert of_files[0] == pytest.approx(1, abs=1e-5)
    assert of_files[1] is None
    assert of_pixels[0] == pytest.approx(1, abs=1e-5)
    assert of_pixels[1] < 0.99  # the golden image's negative, compared with the golden vector


def test_texts_are_measured(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import inputs as maker

    maker.write_images_only(inputs / "images-only", inputs / "model")
    monkeypatch.setattr(benchmark, "OURS", ("exact",))
    run = benchmark.Run(PLAN, ["exact"], inputs)
    run.texts()
    run.bar.close()
    found = run.results["texts"]
    assert {name: len(times["exact"]) for name, times in found["seconds"].items()} == {
        **dict.fromkeys(benchmark.TEXTS, PLAN.rounds * PLAN.per_round),
        "tokenizer": PLAN.rounds,
    }
    assert found["exactness"]["exact"][0] == pytest.approx(1, abs=1e-5)
    assert found["exactness"]["exact"][1] < 0.99  # another text, compared with the golden vector
    # fp32's weights of the text tower are 150 MB, those of the image tower 350.
    assert 100 < found["first"]["exact"]["mb"][0] < 400
    assert 200 < found["alone"]["exact"][0]["peak_mb"] < 500
    starts = found["image cold start"]["exact"]
    assert {name: len(seconds) for name, seconds in starts.items()} == {
        "with": benchmark.BESIDE * PLAN.cold,
        "without": benchmark.BESIDE * PLAN.cold,
    }


def test_a_folder_of_images_only_is_the_same_but_for_the_text_tower(
    inputs: Path, tmp_path: Path
) -> None:
    from benchmarks import inputs as maker

    maker.write_images_only(tmp_path, inputs / "model")
    both, alone = Model.load(inputs / "model"), Model.load(tmp_path / "model")
    assert list(alone.towers) == ["image"]
    assert not list((tmp_path / "model").glob("text*"))
    assert alone.fingerprint("fp32", "openai", 0) == both.fingerprint("fp32", "openai", 0)
    assert (tmp_path / "event.json").read_bytes() == (inputs / "event.json").read_bytes()


def test_the_timed_texts_have_the_tokens_that_they_are_named_for(model_dir: Path) -> None:
    from benchmarks import inputs as maker

    tokenizer = Tokenizer.load(model_dir)
    assert len(tokenizer.tokenize(maker.TEN_TOKENS).ids) == 10
    assert len(tokenizer.tokenize(maker.SEVENTY_SEVEN_TOKENS).ids) == 77


def test_fastembeds_text_model_holds_the_same_weights(
    tmp_path: Path, reference: "Reference", monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastembed")  # `make bench` installs it
    from benchmarks import fastembed_files, subjects

    fastembed_files.write_text_model(tmp_path / "fastembed-text", reference)
    monkeypatch.setenv("CLIP_MODEL_DIR", str(tmp_path / "model"))
    monkeypatch.setenv("CLIP_THREADS", "1")
    texts = ["a photo of a cat", "IT's 7 dogs,  Ein Foto", "cat " * 75]  # of 6 to 77 tokens
    theirs = parity.reference_text_embeddings(reference, import_clip().tokenize(texts))
    cosines = (subjects.load("fastembed").encode_texts(texts) * theirs).sum(axis=1)
    np.testing.assert_allclose(cosines, 1, atol=1e-5)


def test_engines_that_do_not_run_say_why_and_the_others_are_measured(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One has no interpreter, one is none of those known, ours runs.
    monkeypatch.setattr(engines, "RIVALS", tmp_path)
    monkeypatch.setattr(benchmark, "ENGINES", ("OpenVINO", "unknown", "exact"))
    found = engines_of(inputs)
    assert found["missing"] == {"OpenVINO": "not installed", "unknown": "KeyError: 'unknown'"}
    assert list(found["seconds"]["1"]) == list(found["exactness"]) == ["exact"]
    assert len(found["seconds"]["1"]["exact"]) == PLAN.rounds * PLAN.per_round


def test_an_engine_that_dies_is_missing_too(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "python").symlink_to("/bin/false")
    monkeypatch.setattr(engines, "RIVALS", tmp_path)
    monkeypatch.setattr(benchmark, "ENGINES", ("OpenVINO", "exact"))
    found = engines_of(inputs)
    assert "worker died" in found["missing"]["OpenVINO"]
    assert list(found["exactness"]) == ["exact"]


def engines_of(inputs: Path) -> dict[str, Any]:
    """What a short run finds out about engines, with one thread."""
    run = benchmark.Run(PLAN, ["baseline", "exact"], inputs)
    run.threads = [1]
    run.engines()
    run.bar.close()
    return run.results["engines"]  # type: ignore[no-any-return]


def test_an_engine_of_which_a_package_is_missing_says_which(inputs: Path) -> None:
    process = measure.Process("OpenVINO", inputs, threads=1)  # by this interpreter, not by its own
    try:
        trouble = process.ask("trouble")
    finally:
        process.end()
    assert trouble == "ModuleNotFoundError: No module named 'openvino'"


def test_servers_are_measured_and_one_that_is_not_installed_is_missing(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "RIVALS", tmp_path)
    monkeypatch.setattr(benchmark, "SERVERS", ("BentoML", "exact"))
    run = benchmark.Run(PLAN, ["baseline", "exact"], inputs)
    run.servers()
    run.bar.close()
    found = run.results["servers"]
    assert list(found) == ["exact", "missing"]
    assert found["missing"] == {"BentoML": "not installed"}
    exact = found["exact"]
    assert len(exact["start"]) == PLAN.server_starts
    assert len(exact["one"]) == PLAN.rounds * 2 * PLAN.per_round
    assert len(exact["many"]) == PLAN.rounds * PLAN.per_round * servers.CLIENTS
    assert np.linalg.norm(exact["vector"]) == pytest.approx(1, abs=1e-5)
    # The weights alone, widened to fp32, are 350 MB.
    assert 350 < exact["peak_mb"] < 1500


def test_a_server_that_ends_is_not_waited_for_and_leaves_nothing(
    inputs: Path, tmp_path: Path
) -> None:
    (tmp_path / "event.json").write_bytes((inputs / "event.json").read_bytes())
    before = set(measure.children(os.getpid()))  # other tests' servers, say
    with pytest.raises(RuntimeError, match="exact ended with"):
        servers.Running("exact", tmp_path)  # which holds no model
    assert set(measure.children(os.getpid())) <= before


def test_a_server_that_refuses_the_photograph_is_ended(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(inputs / "model")
    refused = rest("POST", "/encode_image", MULTIPART, multipart("image", b"no image"))
    (tmp_path / "event.json").write_text(json.dumps(refused))
    before = set(measure.children(os.getpid()))
    with pytest.raises(RuntimeError, match="answered 4"):
        servers.Running("exact", tmp_path)
    assert set(measure.children(os.getpid())) <= before


def test_the_service_itself_must_run(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "event.json").write_bytes((inputs / "event.json").read_bytes())
    monkeypatch.setattr(benchmark, "ENGINES", ("fast",))
    monkeypatch.setattr(benchmark, "SERVERS", ("fast",))
    run = benchmark.Run(PLAN, ["baseline", "fast"], tmp_path)  # which holds no model
    run.threads = [1]
    for measurement in (run.engines, run.servers):
        with pytest.raises(AssertionError, match="fast"):
            measurement()
    run.bar.close()


def test_memory_is_of_all_processes(inputs: Path) -> None:
    process = measure.Process("exact", inputs, threads=1)
    try:
        process.ask("first")
        pid = process.popen.pid
        whole = measure.peak_megabytes(pid)
        decoders = [measure.peak_megabytes(child) for child in measure.children(pid)]
        alone = int((Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1]).split()[0]) / 1024
    finally:
        process.end()
    assert decoders
    assert alone < whole < alone + sum(decoders)


def test_what_is_judged_is_what_clip_makes_of_the_files(
    tmp_path: Path, reference: "Reference", photo: bytes
) -> None:
    from benchmarks import inputs as maker

    maker.write_judged(tmp_path / "judged", reference, {"photo": photo})
    assert (tmp_path / "judged" / "0.image").read_bytes() == photo
    assert json.loads((tmp_path / "judged" / "names.json").read_text()) == ["photo"]
    pixels = np.load(tmp_path / "judged" / "pixels.npy")
    np.testing.assert_array_equal(pixels, pixels_of(photo)[None])
    vectors = np.load(tmp_path / "judged" / "vectors.npy")
    assert vectors.shape == (1, 512)
    assert np.linalg.norm(vectors[0]) == pytest.approx(1, abs=1e-5)


def results() -> dict[str, Any]:
    """A run's results, in which `exact` is 2 times and `fast` 4 times as fast as what was."""
    slow, medium, quick = [0.2] * 3, [0.1] * 3, [0.05] * 3
    seconds = {"baseline": slow, "exact": medium, "fast": quick}
    starts = {
        name: [{"seconds": times[0], "peak_mb": 100.0, "read_mb": 10.0}]
        for name, times in seconds.items()
    }
    web = {
        name: {"start": t, "one": t, "many": t * 8, "all": t, "peak_mb": 1000 * t[0]}
        for name, t in (("BentoML", slow), ("exact", medium), ("fast", quick))
    }
    vectors = {"BentoML": [1.0, 0.0], "exact": [1.0, 0.0], "fast": [0.6, 0.8]}
    return {
        "machine": {
            "cpu": "a CPU",
            "cpus": 2,
            "architecture": "x86_64",
            "python": "3.11",
            "threads": [1],
        },
        "cold start": {"warm": starts, "cold": starts},
        "sizes": dict.fromkeys(seconds, 100.0),
        "warm": {"1": {"640x480 JPEG": seconds, "12 MP JPEG": seconds}},
        "batch": {"8": seconds},
        "exactness": {"baseline": [1.0, 1.0], "exact": [0.9999999, None], "fast": [0.99, 0.998]},
        "texts": {
            "first": {
                name: {"seconds": times, "mb": [1000 * times[0]], "tokenizer": times}
                for name, times in seconds.items()
            },
            "alone": starts,
            "seconds": dict.fromkeys((*benchmark.TEXTS, "tokenizer"), seconds),
            "exactness": {"baseline": [1.0, 1.0], "exact": [1.0, 1.0], "fast": [0.99, 0.998]},
            "image cold start": {"exact": {"with": [1.01], "without": [1.0]}},
        },
        "servers": {name: row | {"vector": vectors[name]} for name, row in web.items()}
        | {"missing": {}},
        "split": {"1": {"exact": [[0.001, 0.002, 0.003, 0.004]]}},
        "sandbox": {"640x480 JPEG": [[0.001], [0.002]]},
        "peak": {
            "1": {"sgemm": [0.1]} | {f"{n} {b}": [0.1] for n in measure.OURS for b in (1, 16)}
        },
        "engines": {
            "seconds": {"1": {"torch": slow, "OpenVINO": medium, "fast": quick}},
            "exactness": {"torch": [1.0, 1.0], "OpenVINO": [1.0, 1.0], "fast": [0.99, 0.998]},
            "missing": {"OpenVINO, bf16": "Unsuitable: this processor has no bf16"},
        },
        "s3": {"exact 1": {"1": [[0.1, 0.01]], "64": [[1.0, 0.1]]}},
        "cost": {"1769": seconds},
    }


def lines(of: dict[str, Any], begin: str) -> list[str]:
    """The lines of the report that begin so."""
    return [line for line in report.table(of).splitlines() if line.startswith(begin)]


def test_the_table_shows_exactness_beside_speed() -> None:
    (row,) = lines(results(), "| smallest cosine to clip's vector, 2 pictures")
    assert row.split(" | ")[1:] == [
        "1.000000 (mean 1.000000)",
        "1.000000 (mean 1.000000), 1 refused",
        "0.990000 (mean 0.994000)",
        "-",
        "- |",
    ]


def test_texts_are_compared_with_the_old_way() -> None:
    found = results()
    ratios = "| **2.0x faster** | **4.0x faster** |"
    for title in ("one text of 10 tokens", "one text of 77 tokens"):
        (row,) = lines(found, f"| {title}")
        assert row == f"| {title} | 200.0 ms (200.0) | 100.0 ms (100.0) | 50.0 ms (50.0) {ratios}"
    (captions,) = lines(found, "| 64 captions in one request | 200 ms")
    assert captions.endswith(ratios)
    assert len(lines(found, "| tokens of a caption, words")) == 2
    (memory,) = lines(found, "| memory that it adds")
    assert memory == "| memory that it adds | 200 MB | 100 MB | 50 MB | **0.50x** | **0.25x** |"
    assert lines(found, "| smallest cosine to clip's vector, 2 texts")
    (start,) = lines(found, "| exact | 1.000 s")
    assert start == "| exact | 1.000 s | 1.010 s | +1.0% |"


def test_servers_are_compared_with_the_old_one() -> None:
    found = results()
    (title,) = lines(found, "| web server")
    assert title.endswith("| BentoML | exact | fast | exact to BentoML | fast to BentoML |")
    assert lines(found, "| one client") == [
        "| one client | 200 ms (200) | 100 ms (100) | 50 ms (50) "
        "| **2.0x faster** | **4.0x faster** |"
    ]
    # Eight requests in each round of 0.2 s.
    assert lines(found, "| 8 clients, images a second") == [
        "| 8 clients, images a second | 40.0/s (40.0) | 80.0/s (80.0) | 160.0/s (160.0) "
        "| **2.0x faster** | **4.0x faster** |"
    ]
    assert lines(found, "| peak memory of all its processes") == [
        "| peak memory of all its processes | 200 MB | 100 MB | 50 MB | **0.50x** | **0.25x** |"
    ]
    assert lines(found, "| cosine to BentoML's vector") == [
        "| cosine to BentoML's vector | 1.000000 | 1.000000 | 0.600000 | - | - |"
    ]


def test_without_the_old_server_there_are_no_ratios_and_the_reason_is_named() -> None:
    found = results()
    del found["servers"]["BentoML"]
    found["servers"]["missing"] = {"BentoML": "no such file"}
    assert lines(found, "| one client") == ["| one client | 100 ms (100) | 50 ms (50) | - | - |"]
    assert "\nBentoML was not measured: no such file.\n" in report.table(found)


def test_engines_show_speed_and_exactness_or_why_they_did_not_run() -> None:
    text = report.table(results())
    assert "| OpenVINO | 100.0 ms (100.0), **2.0x** | 1.000000 | 1.000000 |" in text
    assert "| fast | 50.0 ms (50.0), **4.0x** | 0.990000 | 0.994000 |" in text
    assert "| OpenVINO, bf16 | - | - | - |" in text
    assert "OpenVINO, bf16 was not measured: Unsuitable: this processor has no bf16." in text


@pytest.mark.parametrize("name", report.PAGES)
def test_the_pages_have_the_figures_of_the_latest_results(name: str) -> None:
    """`python -m benchmarks.report` makes it so."""
    page = (ROOT / name).read_text()
    assert report.into_page(name, page, json.loads(report.RESULTS.read_text())) == page
    assert report.into_page(name, page, results()) != page


def test_the_profiles_are_shown_beside_the_baseline() -> None:
    text = report.profiles(results())
    assert (
        "| 640x480 JPEG, one thread | 200 ms | 100 ms, 2.0x faster | 50 ms, 4.0x faster |" in text
    )
    assert "| cold start to the first vector | 0.20 s | 0.10 s, 2.0x faster |" in text
    assert "| peak memory, one image | 100 MB | 100 MB, 1.0x less | 100 MB, 1.0x less |" in text
    assert "takes 100 ms on one CPU, where the old recipe takes 200; 50 ms" in report.sentence(
        results()
    )


def test_what_arm64_costs_is_marked_as_not_measured() -> None:
    found = results()
    (row,) = lines(found, "| 1,769 MB")
    figures = [cell.split(" / ")[1].split(" (")[0] for cell in row.split(" | ")[1:]]
    assert [figure[-1] for figure in figures] == ["†"] * 3
    (on_paper,) = lines(found, "| 1 M images")
    assert on_paper.count("†") == 2
    assert lines(found, "† Not measured: arm64's price with x86's time.")


def test_the_chart_has_a_bar_for_each_server() -> None:
    text = chart.chart(results())
    assert ">web server, one client<" in text
    assert text.count(">BentoML<") == 2
    assert text.count(">200 ms<") == 4  # the old way's, of two images and two kinds of clients


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

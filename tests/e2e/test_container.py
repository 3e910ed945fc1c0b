"""The image under Lambda's limits: memory, one CPU, read-only root, a user who may do nothing."""

import json
import re

import pytest

from events.generate import HERE
from handler.engines import Embedding
from tests.answers import ERRORS, EVENTS, assert_same, check_answer
from tests.conftest import ROOT
from tests.e2e.conftest import Function, build, docker, limits, started


@pytest.mark.parametrize("name", EVENTS)
def test_every_event_file(function: Function, name: str, vector: Embedding) -> None:
    check_answer(name, function.invoke(name), vector)


def test_a_bad_event_costs_the_next_one_nothing(function: Function) -> None:
    before = function.invoke("direct_image.json")
    for name in ERRORS:
        function.invoke(name)
    assert function.invoke("direct_image.json") == before


def test_the_log_warns_of_synthetic_weights_and_missing_walls_and_of_nothing_else(
    function: Function,
) -> None:
    function.invoke("direct_health.json")
    log = function.log()
    assert "SYNTHETIC" in log
    assert "telemetry" not in log
    named = log.count('"message": "no vector"')  # by the events that ask for what may not be read
    assert log.count("decoders are confined, but not in paths, signals, syscalls") == 1
    assert log.count("WARN") == 2 + named


def test_health_says_which_walls_hold_where_lambda_forbids_the_rest(function: Function) -> None:
    """As the table in SECURITY.md has it, in its column for AWS Lambda."""
    assert function.invoke("direct_health.json")["sandbox"] == {
        **dict.fromkeys(("memory", "cpu", "files", "network", "processes", "ptrace"), True),
        **dict.fromkeys(("paths", "signals", "syscalls"), False),
    }


def test_by_dockers_defaults_every_wall_holds(image: str) -> None:
    """Docker lets a container filter its own system calls."""
    code = "import json, handler.main as m; print(json.dumps(m.encoder.health()['sandbox']))"
    done = docker("run", "--rm", "--user", "993:990", "--entrypoint", "python", image, "-c", code)
    assert set(json.loads(done.stdout.splitlines()[-1]).values()) == {True}


def test_nothing_is_written(function: Function) -> None:
    """Read-only root or not; what a container's own /tmp holds does not count as the image's."""
    assert docker("diff", function.container).stdout == ""
    assert docker("exec", function.container, "ls", "-A", "/tmp").stdout == ""


CALL = """
import sys, urllib.request
url = "http://127.0.0.1:8080/2015-03-31/functions/function/invocations"
print(urllib.request.urlopen(url, sys.stdin.buffer.read(), timeout=60).read().decode())
"""


def test_it_answers_without_a_network(image: str, vector: Embedding) -> None:
    with started(image, *limits(1769), "--network", "none") as container:
        call = ("exec", "--interactive", container, "python", "-c", CALL)
        answer = json.loads(docker(*call, input=(HERE / "direct_image.json").read_text()).stdout)
    assert_same(answer["embedding"], vector)


FILES = """
import pathlib
print(*(path for path in pathlib.Path().rglob("*") if path.is_file()), sep="\\n")
assert not (pathlib.Path.home() / ".cache").exists()
"""


def test_what_the_image_holds(image: str) -> None:
    python = ("run", "--rm", "--entrypoint", "python", image, "-c")
    files = set(docker(*python, FILES).stdout.splitlines())
    assert {"model/model.json", "model/visual.onnx", "model/visual.onnx.data"} <= files
    assert "model/visual.pt" not in files
    top = {path.split("/")[0] for path in files}
    assert top.isdisjoint({"torch", "torchvision", "clip", "export", "tests", "events"})
    assert top.isdisjoint({"uvicorn", "prometheus_client", "fastapi_offline"})
    # Of botocore's descriptions of AWS, those of what is called; without, it would be 17 MB more.
    described = {path.split("/")[2] for path in files if path.startswith("botocore/data/")}
    shared = {"_retry.json", "endpoints.json", "partitions.json", "sdk-default-configuration.json"}
    assert described == {"s3", "s3vectors"} | shared
    # Everything is compiled, by the Python that runs it.
    tag = docker(*python, "import sys; print(sys.implementation.cache_tag)").stdout.strip()
    sources = {path.removesuffix(".py") for path in files if path.endswith(".py")}
    compiled = {path for path in files if path.endswith(".pyc")}
    assert {
        path.replace("__pycache__/", "").removesuffix(f".{tag}.pyc") for path in compiled
    } == sources


def test_it_holds_the_packages_that_are_locked_and_no_others(image: str) -> None:
    """The list that ``make contents`` prints."""
    command = ("-m", "pip", "list", "--path", ".", "--format", "freeze")
    listed = (
        docker("run", "--rm", "--entrypoint", "python", image, *command)
        .stdout.replace("_", "-")
        .split()
    )
    # A package may be locked twice, for different versions of Python.
    locked = re.findall(
        r"^([\w.-]+==[\w.]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE
    )
    assert set(listed) <= set(locked)
    assert {line.split("==")[0] for line in listed} == {line.split("==")[0] for line in locked}


def test_the_labels_and_the_command(image: str) -> None:
    (config,) = json.loads(docker("image", "inspect", image).stdout)
    labels = config["Config"]["Labels"]
    assert labels["clip.weights"] == "synthetic"
    assert labels["com.amazonaws.lambda.feature.snapstart"] == "Allow"
    assert config["Config"]["Cmd"] == ["handler.main.handler"]
    assert config["Config"]["User"] == ""  # sam local refuses another


def test_without_the_checkpoint_the_build_fails_and_says_why(
    image: str, build_arguments: dict[str, str]
) -> None:
    """`image` first: then every layer but the export itself is made already."""
    official = build_arguments | {"WEIGHTS": "openai"}
    done = build(official, "--target", "export", "--network=none", check=False)
    assert done.returncode != 0
    assert "No source had the weights of ViT-B/32:" in done.stderr + done.stdout
    assert "put it beside the Dockerfile, and run: make model" in done.stderr + done.stdout


def test_an_unknown_kind_of_weights_is_refused(image: str, build_arguments: dict[str, str]) -> None:
    done = build(build_arguments | {"WEIGHTS": "best"}, "--target", "export", check=False)
    assert done.returncode != 0
    assert "WEIGHTS is openai, custom or synthetic, not 'best'" in done.stderr + done.stdout

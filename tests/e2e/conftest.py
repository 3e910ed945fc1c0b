"""What the end-to-end tests share: the image, built once from the Dockerfile, and its figures."""

import contextlib
import functools
import http.server
import io
import os
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import pytest

from events.generate import HERE, PHOTO
from handler.config import Config
from handler.encoder import Encoder, load_encoder
from handler.engines import Embedding
from tests.answers import INVOKE
from tests.conftest import ROOT, free_port, require
from tests.e2e.docker_proxy import docker_proxy
from tests.refusing import LAMBDA

DOCKER = os.environ.get("DOCKER", "docker")
SAM = os.environ.get("SAM", "sam")
BASE_IMAGE = os.environ.get("BASE_IMAGE", "public.ecr.aws/lambda/python:3.13")
EXPORT_IMAGE = os.environ.get("EXPORT_IMAGE", BASE_IMAGE)
IMAGE = "clip-image-encoder:e2e"
SAM_ENVIRONMENT = os.environ | {
    "SAM_CLI_TELEMETRY": "0",
    # Nothing here reaches an account.
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
}
FIGURES: dict[str, str] = {}
"""What is printed at the end."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FIGURES:
        terminalreporter.section("the image under Lambda's limits")
        for name, figure in FIGURES.items():
            terminalreporter.write_line(f"{name:45} {figure}")


def run(command: list[str], check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `command` and capture what it prints, which the test shows when it fails."""
    if isinstance(options.get("input"), str):
        options["input"] = options["input"].encode()
    done = subprocess.run(command, capture_output=True, check=False, **options)
    stdout, stderr = done.stdout.decode(), done.stderr.decode()
    if check and done.returncode:
        said = f"{stdout[-3000:]}\n{stderr[-3000:]}"
        pytest.fail(f"{' '.join(command)}: exit status {done.returncode}\n{said}")
    return subprocess.CompletedProcess(command, done.returncode, stdout, stderr)


def docker(*arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the Docker client."""
    return run([DOCKER, *arguments], check, **options)


@pytest.fixture(scope="session")
def build_arguments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The Dockerfile's arguments: synthetic weights, and the wheels of torch on this machine."""
    arguments = {
        "WEIGHTS": "synthetic",
        "PROFILE": "exact",
        "MODEL": "ViT-B/32",
        "BASE_IMAGE": BASE_IMAGE,
        "EXPORT_IMAGE": EXPORT_IMAGE,
    }
    wheels = tmp_path_factory.mktemp("wheels")
    torch = re.findall(r"^torch==\S+", (ROOT / "requirements-torch.txt").read_text(), re.MULTILINE)[
        0
    ]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-index",
        "--no-deps",
        "--dest",
        str(wheels),
        torch,
    ]
    if run(pip, check=False).returncode:
        yield arguments  # none: the build downloads it
        return
    files = functools.partial(_QuietFiles, directory=wheels)
    try:  # the same port as last time, because the address is part of what a layer is found by
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 8099), files)
    except OSError:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), files)
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield arguments | {"PIP_FIND_LINKS": f"http://127.0.0.1:{server.server_port}/"}
        server.shutdown()


class _QuietFiles(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def build(
    arguments: dict[str, str],
    *options: str,
    check: bool = True,
    changed: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.CompletedProcess[str]:
    """``docker build`` from the repository's files, by the classic builder.

    `changed`: path of a file -> what it holds in the context instead.

    ``sam build`` uses that builder too, and finds every layer made already, provided that the
    context
    was packed as it packs its own: by Python's tarfile, which notes the owners' names.
    """
    flags = [flag for item in arguments.items() for flag in ("--build-arg", "=".join(item))]
    if "PIP_FIND_LINKS" in arguments and "--network=none" not in options:
        flags.append("--network=host")
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for name in (
            "Dockerfile",
            "export",
            "handler",
            *(p.name for p in ROOT.glob("requirements*.txt")),
        ):
            tar.add(ROOT / name, name, filter=partial(_as_sam_packs_it, without=changed))
        for name, text in changed.items():
            entry = tar.gettarinfo(ROOT / name, name)
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    command = [
        DOCKER,
        "build",
        "--force-rm",
        "--platform",
        f"linux/{machine}",
        *flags,
        *options,
        "-",
    ]
    environment = os.environ | {"DOCKER_BUILDKIT": "0"}
    return run(command, check=check, input=context.getvalue(), env=environment)


def _as_sam_packs_it(file: tarfile.TarInfo, without: Container[str]) -> tarfile.TarInfo | None:
    file.mtime = int(file.mtime)
    return None if "__pycache__" in file.name or file.name in without else file


@pytest.fixture(scope="session")
def image(build_arguments: dict[str, str]) -> str:
    """The Lambda image."""
    answers = shutil.which(DOCKER) and docker("version", check=False).returncode == 0
    require("docker", answers, f"no Docker engine answers `{DOCKER} version`")
    return built(build_arguments, IMAGE)


def built(arguments: dict[str, str], tag: str, title: str = "") -> str:
    """`tag`, once it is built; how long that took and how large it is are kept under `title`."""
    start = time.monotonic()
    build(arguments, "--tag", tag)
    FIGURES[f"{title}docker build"] = f"{time.monotonic() - start:.0f} s"
    size = int(docker("image", "inspect", "--format", "{{.Size}}", tag).stdout)
    FIGURES[f"{title}image size"] = f"{size / 1e6:.0f} MB"
    return tag


@pytest.fixture(scope="session")
def outside(image: str, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """The package as it is here, outside any container, on the image's own model."""
    return load_encoder(Config(model_dir=model_of(image, tmp_path_factory.mktemp("image"))))


def model_of(image: str, directory: Path) -> Path:
    """The image's model folder, copied into `directory`."""
    container = docker("create", image).stdout.strip()
    docker("cp", f"{container}:/var/task/model", str(directory))
    docker("rm", container)
    return directory / "model"


@pytest.fixture(scope="session")
def vector(outside: Encoder) -> Embedding:
    """What every way in must answer for the photograph."""
    return outside.encode(PHOTO)


def limits(memory: int) -> list[str]:
    """``docker run`` options for what Lambda grants and forbids.

    Among it are the system calls that Lambda refuses, as far as public reports tell. Docker itself
    calls one of them before it starts a container without new privileges, hence that option.
    """
    return [
        *(
            "--memory",
            f"{memory}m",
            "--memory-swap",
            f"{memory}m",
            "--cpus",
            f"{min(1.0, memory / 1769):.2f}",
        ),
        *("--read-only", "--tmpfs", "/tmp:rw,exec,nosuid,nodev,size=512m,mode=1777"),
        *("--user", "993:990", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
        *("--security-opt", f"seccomp={LAMBDA}"),
        *("--pids-limit", "1024", "--ulimit", "nofile=1024:1024"),
        *(
            "--env",
            f"AWS_LAMBDA_FUNCTION_MEMORY_SIZE={memory}",
            "--env",
            "AWS_LAMBDA_FUNCTION_TIMEOUT=29",
        ),
    ]


@contextlib.contextmanager
def started(image: str, *options: str, command: Sequence[str] = ()) -> Iterator[str]:
    """A running container's id; `command` instead of the image's own."""
    container = docker("run", "--detach", *options, image, *command).stdout.strip()
    try:
        yield container
    finally:
        docker("rm", "--force", container)


class Function:
    """A container of the image under Lambda's limits, its port open. One call at a time."""

    def __init__(self, container: str, memory: int, client: httpx.Client) -> None:
        self.container, self.memory, self._client = container, memory, client

    def invoke(self, event: bytes | str) -> Any:
        """Event file name, or an event's JSON -> the answer."""
        content = (HERE / event).read_bytes() if isinstance(event, str) else event
        return self._client.post(INVOKE, content=content).json()

    def log(self) -> str:
        """Both streams of the container."""
        logs = docker("logs", self.container)
        return logs.stdout + logs.stderr

    def peak_memory(self) -> float:
        """MB that the function's process held at most."""
        script = "grep -h VmHWM /proc/[0-9]*/status"
        peaks = docker("exec", self.container, "sh", "-c", script, check=False).stdout
        return max(map(int, re.findall(r"\d+", peaks))) / 1000

    def measure(self, title: str = "") -> None:
        """Call it for the first time and then warm; keep the figures, under `title`."""
        start = time.perf_counter()
        self.invoke("rest_multipart.json")
        first = time.perf_counter() - start
        times = []
        for _ in range(20):
            start = time.perf_counter()
            self.invoke("rest_multipart.json")
            times.append(time.perf_counter() - start)
        init = re.search(r"INIT REPORT\(durationMs: ([\d.]+)", self.log())
        name = f"{title}{self.memory:,} MB: "
        FIGURES[f"{name}init"] = (
            f"{float(init[1]):.0f} ms" if init else "not reported by this emulator"
        )
        FIGURES[f"{name}first request, init included"] = f"{1000 * first:.0f} ms"
        FIGURES[f"{name}warm request, median of 20"] = f"{1000 * statistics.median(times):.0f} ms"


@contextlib.contextmanager
def running(
    image: str, memory: int, *options: str, command: Sequence[str] = ()
) -> Iterator[Function]:
    """A function that answers, under Lambda's limits."""
    port = free_port()
    options = (*limits(memory), *options, "--publish", f"127.0.0.1:{port}:8080")
    with (
        started(image, *options, command=command) as container,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client,
    ):
        _wait_for_answer(client)
        yield Function(container, memory, client)


@pytest.fixture(scope="module", params=[1769, 1024])
def function(request: pytest.FixtureRequest, image: str) -> Iterator[Function]:
    """The function at each memory size; 1,769 MB is one CPU."""
    with running(image, request.param) as function:
        function.measure()
        yield function
        FIGURES[f"{request.param:,} MB: peak memory"] = f"{function.peak_memory():.0f} MB"


def _wait_for_answer(client: httpx.Client) -> None:
    # Docker's proxy accepts connections before the emulator does, so a connection proves nothing.
    for _ in range(200):
        with contextlib.suppress(httpx.TransportError):
            client.get("/")
            return
        time.sleep(0.05)
    pytest.fail("the emulator does not answer")


@pytest.fixture(scope="session", autouse=True)
def refusals_for_sam() -> Iterator[None]:
    """Let the containers that SAM CLI starts be refused what Lambda refuses, too."""
    with docker_proxy() as host:
        SAM_ENVIRONMENT["DOCKER_HOST"] = host
        yield


def sam(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the SAM CLI."""
    return run([SAM, *arguments], check, env=SAM_ENVIRONMENT)


@pytest.fixture(scope="session")
def template(
    image: str, build_arguments: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What ``sam build`` makes of the repository's template, with this build's arguments."""
    require("docker", shutil.which(SAM), f"there is no SAM CLI at {SAM!r}")
    directory = tmp_path_factory.mktemp("sam")
    source = (ROOT / "template.yaml").read_text()
    arguments = "".join(f"\n        {name}: {value}" for name, value in build_arguments.items())
    changed = re.sub(r"(?<=DockerBuildArgs:)(\n        [A-Z_]+: [^\n]+)+", arguments, source)
    assert changed != source
    (directory / "template.yaml").write_text(changed)
    where = ("--base-dir", str(ROOT), "--build-dir", str(directory / "build"))
    built = sam("build", *where, "--template", str(directory / "template.yaml"))
    assert "Using cache" in built.stdout + built.stderr
    return directory / "build" / "template.yaml"

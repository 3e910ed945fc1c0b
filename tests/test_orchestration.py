"""The Compose file, the Kubernetes manifest and Prometheus' settings, held to what is there."""

import os
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from handler.config import Config
from handler.encoder import Encoder
from handler.http.app import create_app
from tests.conftest import ROOT, image_tower, require, serve, with_engine

EXAMPLES = ROOT / "examples"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SERVER = DOCKERFILE.partition("AS server")[2].partition("\nFROM ")[0]
PORT = int(re.findall(r'"--port", "(\d+)"', SERVER)[0])
USER, GROUP = map(int, re.findall(r"USER (\d+):(\d+)", SERVER)[0])


def _documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((EXAMPLES / name).read_text()))


@pytest.fixture(scope="module")
def compose() -> Any:
    (document,) = _documents("compose.yaml")
    return document


@pytest.fixture(scope="module")
def deployment() -> Any:
    return _documents("kubernetes.yaml")[0]


@pytest.fixture(scope="module")
def pod(deployment: Any) -> Any:
    return deployment["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def routes(encoder: Encoder) -> set[str]:
    return {str(getattr(route, "path", "")) for route in create_app(encoder).routes}


def _gigabytes(text: str) -> float:
    return float(text.removesuffix("i").lower().removesuffix("g"))


def _is_enough(gigabytes: float, cpus: float) -> bool:
    """For the model, and for as many decoders as there are CPUs, each as large as it may be."""
    return gigabytes * 2**30 >= 0.6e9 + cpus * Config().decode_mb * 2**20


# --- Docker Compose -------------------------------------------------------------------------------


def test_compose_builds_the_server_out_of_this_repository(compose: Any) -> None:
    server = compose["services"]["server"]
    assert server["build"]["context"] == ".."
    assert server["build"]["target"] in re.findall(r"^FROM .* AS (\w+)$", DOCKERFILE, re.MULTILINE)
    assert set(server["build"]["args"]) <= set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    assert f"-t {server['image']} --target server" in DOCKERFILE
    assert server["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]


def test_compose_closes_and_limits_every_container(compose: Any) -> None:
    for service in compose["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["mem_limit"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    server = compose["services"]["server"]
    assert server["tmpfs"] == ["/tmp"]
    assert _is_enough(_gigabytes(server["mem_limit"]), server["cpus"])
    assert int(server["stop_grace_period"].removesuffix("s")) > Config().body_seconds


def test_composes_settings_can_be_used(compose: Any) -> None:
    Config.from_env(compose["services"]["server"]["environment"])


def test_composes_health_check_tells_good_from_bad(compose: Any, encoder: Encoder) -> None:
    """Run as Docker would run it, in front of servers that are ready, unhealthy and not there."""
    kind, *command = compose["services"]["server"]["healthcheck"]["test"]
    assert kind == "CMD"
    unhealthy = with_engine(encoder, image_tower(encoder).engine)
    image_tower(unhealthy).fault = "the golden image's vector is another"
    found = []
    for each in (encoder, unhealthy):
        with serve(each) as client:
            found.append(_exit_status(command, client.base_url.port))
    found.append(_exit_status(command, client.base_url.port))
    assert found == [0, 1, 1]


def _exit_status(command: list[str], port: int | None) -> int:
    line = [part.replace(f":{PORT}/", f":{port}/") for part in command]
    assert line != command
    own = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    return subprocess.run(line, env=own, stderr=subprocess.DEVNULL, check=False).returncode


def test_docker_compose_itself_takes_the_file() -> None:
    docker = shutil.which("docker") or ""
    known = docker and subprocess.run(
        [docker, "compose", "version"], capture_output=True, check=False
    )
    installed = known and known.returncode == 0
    require("compose", installed, "no docker compose on this machine")
    command = [docker, "compose", "-f", str(EXAMPLES / "compose.yaml"), "config", "--quiet"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


def test_prometheus_asks_the_server_of_compose(compose: Any, routes: set[str]) -> None:
    (settings,) = _documents("prometheus.yml")
    (job,) = settings["scrape_configs"]
    assert job["metrics_path"] in routes
    (target,) = job["static_configs"][0]["targets"]
    name, _, port = target.partition(":")
    assert name in compose["services"]
    assert int(port) == PORT
    mounted = compose["services"]["prometheus"]["volumes"][0].split(":")
    assert mounted == ["./prometheus.yml", "/etc/prometheus/prometheus.yml", "ro"]


# --- Kubernetes -----------------------------------------------------------------------------------


def test_the_manifests_probes_are_routes(pod: Any, routes: set[str]) -> None:
    (container,) = pod["containers"]
    paths = {
        name: container[f"{name}Probe"]["httpGet"]["path"]
        for name in ("startup", "readiness", "liveness")
    }
    # A server that is only not ready must not be restarted.
    assert paths == {"startup": "/ready", "readiness": "/ready", "liveness": "/live"}
    assert set(paths.values()) <= routes
    (port,) = container["ports"]
    assert port["containerPort"] == PORT
    for name in paths:
        assert container[f"{name}Probe"]["httpGet"]["port"] == port["name"]


def test_the_manifest_closes_and_limits_the_container(pod: Any) -> None:
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (
        USER,
        GROUP,
    )
    limits = container["resources"]["limits"]
    assert _is_enough(_gigabytes(limits["memory"]), float(limits["cpu"]))
    (mount,) = container["volumeMounts"]
    assert mount["mountPath"] == "/tmp"
    assert [volume["name"] for volume in pod["volumes"]] == [mount["name"]]


def test_the_manifest_gives_time_to_finish(pod: Any) -> None:
    before = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > before + Config().body_seconds


def test_the_manifests_settings_can_be_used(pod: Any) -> None:
    Config.from_env({entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]})
    assert pod["enableServiceLinks"] is False


def test_the_manifests_service_finds_its_pods(deployment: Any, pod: Any, routes: set[str]) -> None:
    _, service = _documents("kubernetes.yaml")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    (port,) = service["spec"]["ports"]
    assert port["targetPort"] == pod["containers"][0]["ports"][0]["name"]
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] in routes
    assert annotations["prometheus.io/port"] == str(PORT)

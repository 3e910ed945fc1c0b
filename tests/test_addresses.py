"""Where the service can be served: stages, base paths, proxies, and hosts of every form."""

import json
import types
from typing import Any

import httpx
import pytest
from mangum import Mangum

from handler.encoder import Encoder
from handler.http.app import create_app
from tests.conftest import serve, with_settings
from tests.test_every_way_in import event, main
from tests.test_telemetry import lines

__all__ = ["lines", "main"]  # the fixtures

Event = dict[str, Any]


def rest(path: str, full: str, stage: str = "prod", method: str = "GET") -> Event:
    """An event of a REST API."""
    changed = event("rest_health") | {"path": path, "httpMethod": method}
    changed["requestContext"] |= {"path": full, "stage": stage}
    return changed


def http(path: str, stage: str = "$default", method: str = "GET") -> Event:
    """An event of an HTTP API."""
    changed = event("http_api_raw") | {"rawPath": path, "body": "", "isBase64Encoded": False}
    changed["requestContext"]["stage"] = stage
    changed["requestContext"]["http"] |= {"path": path, "method": method}
    return changed


def alb(path: str, method: str = "GET", **headers: str) -> Event:
    changed = event("alb") | {"path": path, "httpMethod": method, "body": ""}
    changed["headers"] |= headers
    return changed


@pytest.fixture
def under_images(main: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """``handler.main`` with CLIP_BASE_PATH=/images."""
    app = create_app(with_settings(main.encoder, base_path="/images"))
    monkeypatch.setattr(main, "_http", Mangum(app, lifespan="off"))
    return main


def get(main: types.ModuleType, request: Event) -> tuple[int, str]:
    response = main.handler(request, None)
    return response["statusCode"], response.get("body", "")


def schema_in(page: str) -> str:
    """The address of the schema, as the documentation's page has it."""
    _, _, rest = page.partition("url: '")
    return rest.partition("'")[0]


NAMED = [  # an event for a path, at an address that begins with the given prefix
    ("", alb),
    ("", http),
    ("/prod", lambda path: rest(path, f"/prod{path}")),
    ("", lambda path: rest(path, path)),  # a custom domain without a base path
    ("/dev", lambda path: http(f"/dev{path}", "dev")),
    ("/health", lambda path: http(f"/health{path}", "health")),  # a stage may be called anything
    ("/health", lambda path: rest(path, f"/health{path}", "health")),
]
BASED = [
    ("/images", lambda path: rest(f"/images{path}", f"/images{path}")),
    ("/images/prod", lambda path: rest(f"/images/prod{path}", f"/images/prod{path}")),
    ("/images", lambda path: http(f"/images{path}", "prod")),
    ("/images", lambda path: alb(f"/images{path}")),
    ("/prod", lambda path: rest(path, f"/prod{path}")),  # not under the domain
]


@pytest.mark.parametrize(("prefix", "request_for"), NAMED)
def test_a_stage_and_what_docs_say_of_it(
    main: types.ModuleType, prefix: str, request_for: Any
) -> None:
    _check_addresses(main, prefix, request_for)


@pytest.mark.parametrize(("prefix", "request_for"), BASED)
def test_a_custom_domains_base_path(
    under_images: types.ModuleType, prefix: str, request_for: Any
) -> None:
    _check_addresses(under_images, prefix, request_for)


def _check_addresses(main: types.ModuleType, prefix: str, request_for: Any) -> None:
    for path in ("/health", "/health/"):
        status, body = get(main, request_for(path))
        assert (status, json.loads(body)["status"]) == (200, "synthetic")
    status, page = get(main, request_for("/docs"))
    assert (status, schema_in(page)) == (200, f"{prefix}/openapi.json")
    status, schema = get(main, request_for("/openapi.json"))
    assert status == 200
    assert json.loads(schema).get("servers", [{"url": ""}]) == [{"url": prefix}]
    assert get(main, request_for("/nope"))[0] == 404


@pytest.mark.parametrize(
    "request_",
    [
        rest("/health", "/prod/health", method="HEAD"),
        http("/health", method="HEAD"),
        alb("/health", method="HEAD"),
    ],
)
def test_head_on_lambda_has_no_body(main: types.ModuleType, request_: Event, lines: Any) -> None:
    response = main.handler(request_, None)
    assert (response["statusCode"], response.get("body", "")) == (200, "")
    assert int(response["headers"]["content-length"]) > 100
    assert [line["method"] for line in lines()] == ["HEAD"]


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "clip.example:8080"},
        {"host": "[2001:db8::1]"},
        {"host": "[2001:db8::1]:8080"},
        {"host": "a:b:c"},
        {"host": "clip.example:http"},
        {"Host": "a:b:c"},
        {"host": ""},
        {"x-forwarded-port": "443, 80"},
        {"X-Forwarded-Port": "none"},
    ],
)
def test_any_host(main: types.ModuleType, headers: dict[str, str]) -> None:
    many = alb("/health")
    many["multiValueHeaders"] = {
        name: [value] for name, value in (many.pop("headers") | headers).items()
    }
    gateway = http("/health")
    gateway["headers"] |= headers
    for request in (alb("/health", **headers), many, gateway):
        assert get(main, request)[0] == 200


def test_a_proxy_before_the_plain_server(encoder: Encoder, client: httpx.Client) -> None:
    """Whether it leaves the base path in or takes it out."""
    with serve(with_settings(encoder, base_path="/images")) as based:
        for path in ("/images/health", "/health", "/images/health/", "/health/"):
            assert based.get(path).json()["status"] == "synthetic"
            assert based.head(path).content == b""
        for path in ("/images/docs", "/docs"):
            assert schema_in(based.get(path).text) == "/images/openapi.json"
        assert based.get("/images/openapi.json").json()["servers"] == [{"url": "/images"}]
        for path in ("/imageshealth", "/images", "/images/images/health"):
            assert based.get(path).status_code == 404
        assert based.get("/images/").text.startswith("<!doctype html>")  # the page
    assert client.get("/images/health").status_code == 404


@pytest.mark.parametrize("path", ["/health", "/docs", "/openapi.json"])
def test_head_and_a_slash_at_the_end(client: httpx.Client, path: str) -> None:
    get = client.get(path)
    assert get.status_code == 200
    for method, address in (("GET", f"{path}/"), ("HEAD", path), ("HEAD", f"{path}/")):
        answer = client.request(method, address)
        assert answer.status_code == 200
        assert answer.headers["content-length"] == get.headers["content-length"]
        assert answer.content == (get.content if method == "GET" else b"")


def test_a_slash_at_the_end_of_a_post(client: httpx.Client, photo: bytes) -> None:
    jpeg = {"content-type": "image/jpeg"}
    answers = [
        client.post(path, content=photo, headers=jpeg).json()
        for path in ("/encode_image", "/encode_image/")
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("method", "path", "takes"),
    [
        ("GET", "/encode_image", "POST"),
        ("HEAD", "/encode_images", "POST"),
        ("DELETE", "/encode_image/", "POST"),
        ("POST", "/health", "GET, HEAD"),
        ("POST", "/docs", "GET, HEAD"),
        ("PUT", "/openapi.json", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(
    client: httpx.Client, method: str, path: str, takes: str
) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, takes)
    if method != "HEAD":
        expected = {"code": "method_not_allowed", "detail": f"this path takes {takes}"}
        assert answer.json() == expected

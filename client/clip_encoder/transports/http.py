"""The service over HTTP: the web server, API Gateway, a Function URL, ``sam local start-api``."""

import json
from types import TracebackType
from typing import Any, Self

import httpx

from clip_encoder.errors import EncoderError, Refused, Unreachable
from clip_encoder.protocol import Answer, Call, Limits, Upload
from clip_encoder.retries import retry_after

FINGERPRINT = "x-clip-fingerprint"
CODES = {
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    413: "body_too_large",
    429: "too_many_requests",
}
"""What an answer without a code of the service's own is called, by its status."""
ERROR_TYPE = "x-amzn-errortype"
"""The header in which API Gateway and Function URLs name the errors that are their own."""
QUOTA = "LimitExceededException"
"""That of a key whose quota is used up: unlike too many requests a second, waiting is no help."""
HINTS = {
    "ForbiddenException": "give the API's key, and an address that ends in the API's stage, as in "
    ".../prod; AWS WAF refuses in the same words",
    "MissingAuthenticationTokenException": "the API has no such path, or wants signed requests",
    "AccessDeniedException": "sign the requests, as someone who may invoke the API or the function",
    QUOTA: "the quota of the key's usage plan is used up",
}
"""What may be wrong, by the error's type."""


class HttpTransport:
    """Requests over HTTP, each on a connection that is kept open. Thread-safe."""

    def __init__(
        self, address: str, api_key: str | None, sigv4: bool, timeout: float, connections: int
    ) -> None:
        """Take the service's address, which may end in a path, and seconds to wait for an answer.

        Raises:
            EncoderError: `sigv4` without boto3.
        """
        self.limits = Limits()
        self._address = address
        self._http = httpx.Client(**_settings(address, api_key, sigv4, timeout, connections))

    def send(self, call: Call) -> Answer:
        """Send one request; see `protocol.Transport`."""
        try:
            return _read(self._http.send(_request(self._http, call)))
        except httpx.TransportError as error:
            raise _unreachable(self._address, error) from error

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


class AsyncHttpTransport:
    """`HttpTransport` for asyncio."""

    def __init__(
        self, address: str, api_key: str | None, sigv4: bool, timeout: float, connections: int
    ) -> None:
        """Take what `HttpTransport` takes."""
        self.limits = Limits()
        self._address = address
        self._http = httpx.AsyncClient(**_settings(address, api_key, sigv4, timeout, connections))

    async def send(self, call: Call) -> Answer:
        """Send one request; see `protocol.Transport`."""
        try:
            return _read(await self._http.send(_request(self._http, call)))
        except httpx.TransportError as error:
            raise _unreachable(self._address, error) from error

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self.close()


def _settings(
    address: str, api_key: str | None, sigv4: bool, timeout: float, connections: int
) -> dict[str, Any]:
    """What both of httpx's clients are made with."""
    settings: dict[str, Any] = {
        "base_url": address.rstrip("/"),
        "timeout": timeout,
        # Callers may have threads and tasks of their own, none of which should wait for another.
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=connections),
        "headers": {"x-api-key": api_key} if api_key else {},
    }
    if sigv4:
        from clip_encoder.transports.sigv4 import Signature  # here, because it needs boto3

        settings["auth"] = Signature(httpx.URL(address).host)
    return settings


def _request(http: httpx.Client | httpx.AsyncClient, call: Call) -> httpx.Request:
    if call.body is None:
        return http.build_request("GET", call.path)
    body = call.body
    if not isinstance(body, Upload):
        body = Upload("application/json", json.dumps(body, separators=(",", ":")).encode())
    headers = {"content-type": body.media_type, "accept": "application/json"}
    return http.build_request("POST", call.path, content=body.data, headers=headers)


def _unreachable(address: str, error: httpx.TransportError) -> Unreachable:
    return Unreachable(f"{address}: {error or type(error).__name__}")


def _read(response: httpx.Response) -> Answer:
    """The answer that `response` holds.

    Raises:
        EncoderError: it holds an error.
    """
    try:
        body = response.json()
    except ValueError:
        body = None
    # A service that is unhealthy says so with 503, and that is an answer to the question.
    is_health = response.request.method == "GET" and isinstance(body, dict) and "status" in body
    if body is not None and (response.is_success or is_health):
        return Answer(body, response.headers.get(FINGERPRINT))
    raise _error(response, body)


def _error(response: httpx.Response, body: object) -> EncoderError:
    wait = retry_after(response.headers)
    if isinstance(body, dict) and isinstance(body.get("code"), str):
        detail = str(body.get("detail", ""))
        return EncoderError(body["code"], detail, response.status_code, wait)
    return _not_ours(response, body, wait)


def _not_ours(response: httpx.Response, body: object, wait: float | None) -> EncoderError:
    """The error of a gateway or proxy before the service, or of something else altogether."""
    status = response.status_code
    error_type = response.headers.get(ERROR_TYPE, "").partition(":")[0]
    said = [f"HTTP {status} {response.reason_phrase} from {response.request.url}"]
    if isinstance(body, dict):
        # API Gateway writes `message`, except where IAM refuses, and Function URLs: `Message`.
        message = str(body.get("message") or body.get("Message") or "")
        # About a wrong signature it says more below: all that was signed, a session's token too.
        said += message.splitlines()[:1]
    if error_type in HINTS:
        said.append(HINTS[error_type])
    detail = ": ".join(said)
    if error_type == QUOTA:
        return Refused("quota_exceeded", detail, status, wait)
    # Another request may be smaller, or come at a better time. All else would be refused again.
    may_pass = status in (408, 413, 429) or status >= 500
    kind = EncoderError if may_pass else Refused
    return kind(CODES.get(status, f"http_{status}"), detail, status, wait)

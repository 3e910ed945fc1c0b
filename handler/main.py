"""The entry point: the model loads here, once, in Lambda's init phase.

``handler`` serves Lambda events; ``app`` serves HTTP anywhere (``uvicorn handler.main:app``).
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from handler import telemetry
from handler.encoder import load_from_env
from handler.errors import InvalidEvent

with ThreadPoolExecutor(1) as pool:
    # The engine reads and packs the weights without the GIL: the web framework is imported
    # meanwhile.
    loading = pool.submit(load_from_env)
    # FastAPI imports pydantic's old version, if there is one, to ask of every type whether it is
    # its.
    sys.modules.setdefault("pydantic.v1", None)  # type: ignore[arg-type]
    import asyncio

    from mangum import Mangum

    from handler.events import direct
    from handler.http.app import create_app
encoder = loading.result()
app = create_app(encoder)
# Mangum takes the event loop that is set. Where none is, Python up to 3.11 makes one, 3.12 and 3.13
# do so with a warning, and 3.14 refuses.
_loop = asyncio.new_event_loop()
asyncio.set_event_loop(_loop)
# Mangum would run startup and shutdown around every single invocation; there is nothing to start.
_http = Mangum(app, lifespan="off")


def handler(event: Any, context: Any) -> dict[str, Any]:
    """Answer one Lambda event.

    HTTP events (API Gateway REST and HTTP APIs, Function URL, ALB) give an HTTP response, whose
    status says what happened; for all others see `direct.invoke`.

    Raises:
        ClipError: an event that cannot be served; Lambda reports its class and text.
    """
    kind = _http_kind(event)
    if kind is None:
        return direct.invoke(event, context, encoder)
    invocation = direct.invocation_id(context)
    gateway = event["requestContext"].get("requestId")
    with telemetry.request(kind, str(gateway or invocation)):
        if gateway:
            telemetry.note(lambda_request_id=invocation)
        try:
            return _http(event, context)
        except (
            Exception
        ) as error:  # the app answers its own errors: this is Mangum reading the event
            raise InvalidEvent(f"an HTTP event, but malformed ({type(error).__name__})") from error


def _http_kind(event: Any) -> str | None:
    """Name an HTTP event by its keys; None: it is none, or only resembles one."""
    request = event.get("requestContext") if isinstance(event, dict) else None
    if isinstance(request, dict):
        http = request.get("http")
        if isinstance(http, dict) and isinstance(http.get("method"), str):
            return (
                "function_url" if ".lambda-url." in str(request.get("domainName")) else "http_api"
            )
        if isinstance(event.get("httpMethod"), str):
            return "alb" if "elb" in request else "rest_api"
    return None

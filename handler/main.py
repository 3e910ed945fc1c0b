"""The entry point: the model loads here, once, in Lambda's init phase.

``handler`` serves Lambda events; ``app`` serves HTTP anywhere (``uvicorn handler.main:app``).
"""

import gc
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from handler.config import available_cpus
from handler.images import sandbox

# The process that decodes gets ready by itself, so it is started before all else is imported.
zygote = sandbox.prepare()

# FastAPI imports pydantic's old version to ask of every type whether it is one of its own. Here
# none is, and the import takes 30 ms of a cold start. With `None` in its place it fails, which
# FastAPI is prepared for, since not every pydantic comes with its old version.
sys.modules.setdefault("pydantic.v1", None)  # type: ignore[arg-type]

# What is loaded from here on stays: to search it for garbage would be a twentieth of a cold start.
gc.disable()
with ThreadPoolExecutor(1) as thread:
    from handler.encoder import load_from_env

    # The engine packs its weights without Python's lock, so with a second CPU everything else can
    # be imported meanwhile: 0.2 s less. With one CPU the two would only be in each other's way.
    loading = thread.submit(load_from_env, zygote)
    if available_cpus() == 1:
        wait([loading])
    import asyncio

    from mangum import Mangum

    from handler import telemetry
    from handler.errors import InvalidEvent
    from handler.events import direct
    from handler.http.app import create_app
encoder = loading.result()
app = create_app(encoder)
_loop = asyncio.new_event_loop()
asyncio.set_event_loop(_loop)  # Mangum looks for one already when it is made
# Mangum would run startup and shutdown around every single invocation; there is nothing to start.
_http = Mangum(app, lifespan="off")
gc.freeze()  # later searches leave out what is here now
gc.enable()
telemetry.ready(encoder.processes)


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
    with telemetry.request(kind, str(gateway or invocation), context):
        if gateway:
            telemetry.note(lambda_request_id=invocation)
        # Mangum answers in this thread's event loop, and Python 3.14 makes none. It is set each
        # time, because what ran a loop of its own here meanwhile has left none.
        asyncio.set_event_loop(_loop)
        try:
            return _http(_without_host(event), context)
        except Exception as error:  # Mangum could not read it: the app answers its own errors
            raise InvalidEvent(f"an HTTP event, but malformed ({type(error).__name__})") from error


def _http_kind(event: Any) -> str | None:
    """Name an HTTP event by its keys; None: it is none, or only resembles one."""
    request = event.get("requestContext") if isinstance(event, dict) else None
    if not isinstance(request, dict):
        return None
    http = request.get("http")
    if isinstance(http, dict) and isinstance(http.get("method"), str):
        is_url = ".lambda-url." in str(request.get("domainName"))
        return "function_url" if is_url else "http_api"
    if isinstance(event.get("httpMethod"), str):
        return "alb" if "elb" in request else "rest_api"
    return None


_OF_THE_HOST = ("host", "x-forwarded-port")


def _without_host(event: Mapping[str, Any]) -> dict[str, Any]:
    """`event` without the headers that say how the service is called, which no answer depends on.

    Mangum makes a name and a port of them, and raises where there is more than one colon, as in an
    IPv6 address, or more than one port, as behind two proxies.
    """
    changed = dict(event)
    for field in ("headers", "multiValueHeaders"):
        if event.get(field):
            changed[field] = {
                name: value
                for name, value in event[field].items()
                if name.lower() not in _OF_THE_HOST
            }
    return changed

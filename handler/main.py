"""The entry point: the model loads here, once, in Lambda's init phase.

``handler`` serves Lambda events; ``app`` serves HTTP anywhere (``uvicorn handler.main:app``).
"""

import os
import sys
import uuid
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# What is not used here, kept out of the cold start: NumPy and pydantic read these at import.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # else NumPy starts threads of its own, which spin
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # else a look at every package installed

from handler import telemetry
from handler.config import Config
from handler.encoder import Encoder, load_encoder
from handler.errors import InvalidEvent


def _load() -> Encoder:
    try:
        config = Config.from_env()
        telemetry.configure(config.log_level)
        return load_encoder(config)
    except Exception as error:
        telemetry.configure("INFO")
        telemetry.log.critical("the service cannot start: %s", error)
        raise


warnings.filterwarnings("ignore", module="PIL")  # advice on images, which are the callers'
with ThreadPoolExecutor(1) as pool:
    # The engine reads and packs the weights without the GIL: the web framework is imported meanwhile.
    loading = pool.submit(_load)
    # FastAPI imports pydantic's old version, if there is one, to ask of every type whether it is its.
    sys.modules.setdefault("pydantic.v1", None)  # type: ignore[arg-type]
    from mangum import Mangum

    from handler import direct
    from handler.app import create_app
encoder = loading.result()
app = create_app(encoder)
# Mangum would run startup and shutdown around every single invocation; there is nothing to start.
_http = Mangum(app, lifespan="off")


def handler(event: Any, context: Any) -> dict[str, Any]:
    """Answer one Lambda event.

    HTTP events (API Gateway REST and HTTP APIs, Function URL, ALB) give an HTTP response, whose
    status says what happened; direct events give the answer itself.

    Raises:
        ClipError: a direct event that cannot be served; Lambda reports its class and text.
    """
    kind = _kind(event)
    invocation = getattr(context, "aws_request_id", None) or str(uuid.uuid4())
    gateway = event["requestContext"].get("requestId") if kind in _HTTP_KINDS else None
    with telemetry.request(kind, str(gateway or invocation)):
        if gateway:
            telemetry.note(lambda_request_id=invocation)
        if not isinstance(event, dict):
            raise InvalidEvent(f"expected {direct.EXPECTED}; got a {type(event).__name__}")
        if kind not in _HTTP_KINDS:
            return direct.handle(event, encoder)
        try:
            return _http(event, context)
        except Exception as error:  # the app answers its own errors: this is Mangum reading the event
            raise InvalidEvent(f"an HTTP event, but malformed ({type(error).__name__})") from error


_HTTP_KINDS = ("rest_api", "http_api", "function_url", "alb")


def _kind(event: Any) -> str:
    """Name an event by its keys; what only resembles an HTTP event is a direct one."""
    request = event.get("requestContext") if isinstance(event, dict) else None
    if isinstance(request, dict):
        http = request.get("http")
        if isinstance(http, dict) and isinstance(http.get("method"), str):
            return "function_url" if ".lambda-url." in str(request.get("domainName")) else "http_api"
        if isinstance(event.get("httpMethod"), str):
            return "alb" if "elb" in request else "rest_api"
    return "scheduled" if isinstance(event, dict) and "detail-type" in event else "direct"

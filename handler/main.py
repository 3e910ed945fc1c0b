"""The entry point: the model loads here, once, in Lambda's init phase.

``handler`` serves Lambda events; ``app`` serves HTTP anywhere (``uvicorn handler.main:app``).
"""

import logging
import warnings
from typing import Any

from mangum import Mangum

from handler import direct
from handler.app import create_app
from handler.config import Config
from handler.encoder import load_encoder
from handler.errors import InvalidEvent

config = Config.from_env()
logging.basicConfig(level=config.log_level, format="%(levelname)s %(name)s %(message)s")
warnings.filterwarnings("ignore", module="PIL")  # advice on images, which are the callers'
encoder = load_encoder(config)
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
    if not isinstance(event, dict):
        raise InvalidEvent(f"expected {direct.EXPECTED}; got a {type(event).__name__}")
    if not _is_http(event):
        return direct.handle(event, encoder)
    try:
        return _http(event, context)
    except Exception as error:  # the app answers its own errors: this is Mangum reading the event
        raise InvalidEvent(f"an HTTP event, but malformed ({type(error).__name__})") from error


def _is_http(event: dict[str, Any]) -> bool:
    request = event.get("requestContext")
    return isinstance(request, dict) and ("httpMethod" in event or "http" in request)

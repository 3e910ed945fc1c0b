"""The batch function's entry point: ``main`` without HTTP, so that it imports no web framework."""

from typing import Any

from handler.encoder import load_from_env
from handler.events import direct

encoder = load_from_env()


def handler(event: Any, context: Any) -> dict[str, Any]:
    """Answer one direct event or one of a batch engine's; see `direct.invoke`."""
    return direct.invoke(event, context, encoder)

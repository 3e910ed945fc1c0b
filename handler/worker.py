"""The batch function's entry point: as ``main``, without HTTP, so that no web framework is
imported.
"""

from typing import Any

from handler.encoder import load_from_env
from handler.events import direct

encoder = load_from_env()


def handler(event: Any, context: Any) -> dict[str, Any]:
    """Answer one direct event or one of a batch engine's; see `direct.invoke`."""
    return direct.invoke(event, context, encoder)

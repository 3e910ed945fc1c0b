"""The batch function's entry point: as ``main``, without HTTP and without a web framework."""

from typing import Any

from handler.images import sandbox

# The process that decodes gets ready by itself, so it is started before all else is imported.
zygote = sandbox.prepare()

from handler.encoder import load_from_env  # noqa: E402
from handler.events import direct  # noqa: E402

encoder = load_from_env(zygote)


def handler(event: Any, context: Any) -> dict[str, Any]:
    """Answer one direct event or one of a batch engine's; see `direct.invoke`."""
    return direct.invoke(event, context, encoder)

"""The batch function's entry point: as ``main``, without HTTP and without a web framework."""

import gc
from typing import Any

from handler.images import sandbox

# The process that decodes gets ready by itself, so it is started before all else is imported.
zygote = sandbox.prepare()

# As in `main`: what is loaded from here on stays, so garbage is not looked for.
gc.disable()
from handler import telemetry  # noqa: E402
from handler.encoder import load_from_env  # noqa: E402
from handler.events import direct  # noqa: E402

encoder = load_from_env(zygote)
gc.freeze()
gc.enable()
telemetry.ready(encoder.processes)


def handler(event: Any, context: Any) -> dict[str, Any]:
    """Answer one direct event or one of a batch engine's; see `direct.invoke`."""
    return direct.invoke(event, context, encoder)

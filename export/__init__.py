"""Build time only: makes the folder ``model/`` out of OpenAI's checkpoint, with torch and clip."""

import os

# Unless told not to before it is imported, ONNX Runtime reports its use to Microsoft.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


class ExportError(RuntimeError):
    """The export cannot go on; the text says what to do about it."""

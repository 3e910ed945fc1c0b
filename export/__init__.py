"""Build time only: makes the folder ``model/`` out of OpenAI's checkpoint, with torch and clip."""


class ExportError(RuntimeError):
    """The export cannot go on; the text says what to do about it."""

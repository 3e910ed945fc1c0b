"""The HTTP interface: routes, what stands around every request, and how bodies are read."""

from pydantic import BaseModel


def _import_fastapi() -> None:
    """Import FastAPI without compiling what it describes OpenAPI by: 50 ms of a cold start.

    These are forty pydantic models. With `defer_build` they are compiled when the document is first
    asked for. Our own models are not deferred: a request would pay for them.
    """
    BaseModel.model_config["defer_build"] = True
    try:
        import fastapi  # noqa: F401
    finally:
        del BaseModel.model_config["defer_build"]


_import_fastapi()

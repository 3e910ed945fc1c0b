"""The HTTP interface: routes, what stands around every request, and how bodies are read."""

import sys

from pydantic import BaseModel


def _import_fastapi() -> None:
    """Import FastAPI without two things that few or none need: 80 ms of a cold start.

    It imports pydantic's old version, to ask of every type whether it is one of its own. Here none
    is. With `None` in its place the import fails, which FastAPI is prepared for, since not every
    pydantic comes with its old version.

    It describes the parts of an OpenAPI document by forty pydantic models, each of which is
    compiled where it is defined. With `defer_build` they are compiled when the document is first
    asked for.
    Our own models are not deferred: a request would pay for them.
    """
    sys.modules.setdefault("pydantic.v1", None)  # type: ignore[arg-type]
    BaseModel.model_config["defer_build"] = True
    try:
        import fastapi  # noqa: F401
    finally:
        del BaseModel.model_config["defer_build"]


_import_fastapi()

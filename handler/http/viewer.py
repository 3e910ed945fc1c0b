"""The viewer behind ``/docs``, Swagger UI, served by the service itself.

FastAPI's own ``/docs`` has the browser load the viewer from a public server, which a closed network
does not reach. The package ``fastapi-offline`` brings the same files; of it nothing else is used.
"""

from importlib.util import find_spec
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse

from handler.http.policy import policy

PATH = "/docs"
SCRIPT, STYLE, ICON = "swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"


def viewer_files() -> Path | None:
    """The folder of the viewer's files; None where the package is not installed, as on Lambda."""
    package = find_spec("fastapi_offline")
    if package is None or not package.submodule_search_locations:
        return None
    return Path(package.submodule_search_locations[0]) / "static"


def add_viewer(app: FastAPI, files: Path) -> None:
    """Serve ``/docs`` and what it is made of, out of the folder `files`."""

    @app.get(PATH, include_in_schema=False)
    async def docs(request: Request) -> Response:
        """The API's documentation, to read and to try."""
        root = request.scope.get("root_path", "")
        page = get_swagger_ui_html(
            openapi_url=f"{root}{app.openapi_url}",
            title=app.title,
            swagger_js_url=f"{root}{PATH}/{SCRIPT}",
            swagger_css_url=f"{root}{PATH}/{STYLE}",
            swagger_favicon_url=f"{root}{PATH}/{ICON}",
        )
        allowed = {
            "script": "'self'",
            "style": "'self'",
            "connect": "'self'",
            "img": "'self' data:",
        }
        page.headers["Content-Security-Policy"] = policy(bytes(page.body).decode(), **allowed)
        return page

    def add_file(name: str) -> None:
        @app.get(f"{PATH}/{name}", include_in_schema=False)
        async def file() -> Response:
            """A file of the viewer's."""
            return FileResponse(files / name)

    for name in (SCRIPT, STYLE, ICON):
        add_file(name)

"""The page to try the service on: one file, ``index.html``, which needs no other server."""

from pathlib import Path

from fastapi import FastAPI, Response

from handler.http.policy import policy

FILE = Path(__file__).with_name("index.html")


def add_page(app: FastAPI) -> None:
    """Serve the page at the root of the service."""

    # Not `async`, so that the file is read in a thread. It is read when it is asked for: hardly any
    # start of the service is followed by someone who looks at the page.
    @app.get("/", include_in_schema=False)
    def page() -> Response:
        """The page to try the service on."""
        html = FILE.read_text("utf-8")
        # Images are shown from the browser's own memory, and the icon is part of the page.
        allowed = policy(html, connect="'self'", img="blob: data:")
        headers = {"Content-Security-Policy": allowed, "Cache-Control": "no-cache"}
        return Response(html, headers=headers, media_type="text/html")

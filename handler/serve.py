"""``python -m handler.serve``: the web server, as ``make run`` starts it.

It is ``uvicorn handler.main:app``, and when it is ready it says where to click and what to paste.
If the weights are not those that were asked for, it says so last, where it is seen.
"""

import argparse
import socket
import sys
from collections.abc import Sequence

import uvicorn

from handler.config import Config
from handler.model import Model


def welcome(host: str, port: int) -> str:
    """The line for whoever started the server."""
    # From these two a browser could not ask.
    name = "localhost" if host in ("0.0.0.0", "127.0.0.1", "::") else host  # noqa: S104
    address = f"{name}:{port}"
    curl = f"curl -F image=@events/photo.jpg {address}/encode_image"
    return f"ready: open http://{address}/ or paste: {curl}"


class Server(uvicorn.Server):
    """uvicorn's server, which prints a line when it listens, and the model's notice."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen; then the model is loaded already."""
        await super().startup(sockets)
        if self.started:
            port = self.servers[0].sockets[0].getsockname()[1]  # another one where 0 was asked for
            print(welcome(self.config.host, port), flush=True)
            if notice := Model.load(Config.from_env().model_dir).notice:
                print(f"\n{notice}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until a signal ends it; an exit status other than 0 if it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m handler.serve", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at")
    parser.add_argument("--port", type=int, default=3000)
    options = parser.parse_args(arguments)
    config = uvicorn.Config(
        "handler.main:app", host=options.host, port=options.port, access_log=False
    )
    server = Server(config)
    server.run()
    if not server.started:
        sys.exit(3)


if __name__ == "__main__":
    main()

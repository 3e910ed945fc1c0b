"""Who may come in, and how much may be held."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial

from fastapi import Request, Response

from handler.config import Config, available_cpus
from handler.errors import BodyTooLarge, Overloaded


class Turns:
    """Bodies are read at once, up to a limit for all together; as many are worked on as there are
    CPUs.
    """

    def __init__(self, config: Config) -> None:
        self.most = config.max_body_bytes
        self.held = 0  # bytes of all bodies in memory
        # Our own: anyio's threads end with the event loop, and Mangum makes a loop for each
        # request.
        self.threads = ThreadPoolExecutor(available_cpus())

    async def take(self, request: Request, work: Callable[[str, bytes], Response]) -> Response:
        """Answer with `work(content_type, body)`, done in a thread."""
        content_type = str(request.headers.get("content-type", ""))
        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                self.held += len(chunk)
                if len(body) > self.most:
                    raise BodyTooLarge(f"the request body is over {self.most:,} bytes")
                if self.held > 4 * self.most:
                    raise Overloaded("too many large requests at once: try again in a second")
            in_context = partial(copy_context().run, work, content_type, bytes(body))
            return await asyncio.get_running_loop().run_in_executor(self.threads, in_context)
        finally:
            self.held -= len(body)

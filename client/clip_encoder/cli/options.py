"""What the commands' options have in common: which service, and how it is asked."""

import argparse
import os
from typing import Any

from clip_encoder.client import ADDRESS, CONCURRENCY, TIMEOUT, Client

URL_VARIABLE, KEY_VARIABLE = "ENCODER_URL", "ENCODER_API_KEY"


def add_service(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the service."""
    parser.add_argument(
        "--url",
        default=os.environ.get(URL_VARIABLE, ADDRESS),
        metavar="ADDRESS",
        help=f"http://..., https://..., lambda://function:alias or local:model-folder "
        f"(default: {URL_VARIABLE}, or {ADDRESS})",
    )
    add_access(parser)


def add_access(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how the service lets the caller in."""
    parser.add_argument(
        "--api-key",
        default=os.environ.get(KEY_VARIABLE),
        metavar="KEY",
        help=f"API Gateway's key (default: {KEY_VARIABLE})",
    )
    parser.add_argument(
        "--sigv4", action="store_true", help="sign requests with the environment's AWS credentials"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=TIMEOUT,
        metavar="SECONDS",
        help="to wait for an answer (default: %(default)s)",
    )


def add_load(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that send many images."""
    parser.add_argument(
        "--concurrency",
        type=int,
        default=CONCURRENCY,
        metavar="N",
        help="requests sent side by side (default: %(default)s)",
    )


def connect(arguments: argparse.Namespace, address: str, **options: Any) -> Client:
    """The client of the service at `address`, let in as the options say.

    Raises:
        ValueError, EncoderError: as `Client`.
    """
    return Client(address, **access(arguments, address), **options)


def access(arguments: argparse.Namespace, address: str) -> dict[str, Any]:
    """What the options say of how to ask the service at `address`."""
    # A key in the environment is for HTTP; with another address it is not meant.
    api_key = arguments.api_key if is_http(address) else None
    return {"api_key": api_key, "sigv4": arguments.sigv4, "timeout": arguments.timeout}


def is_http(address: str) -> bool:
    """Whether the service at `address` is asked over HTTP."""
    return address.startswith(("http://", "https://"))

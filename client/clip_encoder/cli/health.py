"""``clip-encoder health``: what a service says of itself."""

import argparse
import json

from clip_encoder.cli import options

SUMMARY = "ask a service how it is, and what makes its vectors"
DESCRIPTION = """\
Ask a service how it is, and what makes its vectors.

The exit status is 0 if vectors can be had (synthetic ones too, which mean nothing and are for
trying things out), 1 if the service says that it is unhealthy, and 2 if it cannot be asked."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    options.add_service(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; gives the exit status.

    Raises:
        EncoderError: the service cannot be asked.
    """
    with options.connect(arguments, arguments.url) as client:
        found = client.health()
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        width = max(map(len, found), default=0)
        for name, value in found.items():
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            print(f"{name:{width}}  {shown}")
    return 0 if found.get("status") in ("healthy", "synthetic") else 1

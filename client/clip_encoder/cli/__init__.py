"""The command line, ``clip-encoder``."""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence

from clip_encoder.errors import EncoderError

COMMANDS = ("encode", "similar", "rank", "check", "health")
"""Each is a module here, with what its command takes and does."""
BROKEN = 2
"""The exit status of a command that could not do its work, as of one that was given wrongly."""
INTERRUPTED = 130
"""That of a command that was stopped by Ctrl-C, as shells have it."""


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = argparse.ArgumentParser(
        prog="clip-encoder", description="Vectors of images and texts, from the CLIP image encoder."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"clip_encoder.cli.{name}")
        command = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=module.DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit status."""
    given = parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of files need not be text; those that are not are printed as they are.
        sys.stdout.reconfigure(errors="surrogateescape")
    try:
        status: int = given.run(given)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN
    except (EncoderError, ValueError, OSError) as error:
        print(f"clip-encoder: {error}", file=sys.stderr)
        return BROKEN

"""``clip-encoder health``: what a service says of itself, and whether it does what it should."""

import argparse
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clip_encoder import transports
from clip_encoder.checking import deployment
from clip_encoder.checking.deployment import Report
from clip_encoder.cli import options

SUMMARY = "ask a service how it is, and what makes its vectors; or try all of it"
DESCRIPTION = """\
Ask a service how it is, and what makes its vectors.

The exit status is 0 if vectors can be had (synthetic ones too, which mean nothing and are for
trying things out), 1 if the service says that it is unhealthy, and 2 if it cannot be asked.

With --deep everything is tried as the first user of a new deployment would: which limits of the
sandbox hold, one picture by every way in, one text, a file that is not an image, and how long an
answer takes. It prints a page to send to whoever maintains the service: API keys, credentials and
AWS account numbers are not in it. The exit status is then 0 if nothing failed, and 1 otherwise."""

MARKS = {True: "ok", False: "FAILED", None: "-"}
HIDDEN = "****"
SECRETS = (
    (re.compile(r"(?<=://)[^/@\s]+@"), f"{HIDDEN}@"),  # of an address with a password
    (
        re.compile(r"(?<=://)([^\s?\"]+)\?[^\s\"]+"),
        rf"\1?{HIDDEN}",
    ),  # a query, which may hold a token
    (re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{12,}"), HIDDEN),  # AWS's access keys
    (re.compile(r"(?<!\d)\d{12}(?!\d)"), HIDDEN),  # AWS's accounts, in ARNs
)
"""What no page shows, whoever wrote it: AWS's errors hold much of what was sent."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--deep", action="store_true", help="try all of it, and print a page")
    parser.add_argument(
        "--model",
        type=Path,
        metavar="FOLDER",
        help="with --deep: an exported model, with the vectors that clip itself gave, to compare",
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    options.add_service(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; gives the exit status.

    Raises:
        EncoderError: the service cannot be asked.
    """
    if arguments.deep:
        return _deep(arguments)
    with options.connect(arguments, arguments.url) as client:
        found = client.health()
    print(json.dumps(found, indent=2) if arguments.json else _fields(found))
    return 0 if found.get("status") in ("healthy", "synthetic") else 1


def _fields(found: Mapping[str, Any]) -> str:
    width = max(map(len, found), default=0)
    return "\n".join(f"{name:{width}}  {_shown(value)}" for name, value in found.items())


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {json.dumps(item)}" for name, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def _deep(arguments: argparse.Namespace) -> int:
    address = arguments.url
    sample = deployment.load_sample(arguments.model)
    access = options.access(arguments, address)
    transport = transports.connect(address, **access, connections=1)
    try:
        report = deployment.examine(transport, sample, is_http=options.is_http(address))
    finally:
        transport.close()
    asked = {
        "address": address,
        "access": _access(access),
        "when": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }
    page = _json(asked, report) if arguments.json else _page(asked, report)
    print(_without_secrets(page, access["api_key"]))
    return 0 if report.passed else 1


def _access(access: Mapping[str, Any]) -> str:
    ways = {"an API key": access["api_key"], "a signature": access["sigv4"]}
    return " and ".join(name for name, given in ways.items() if given) or "nothing"


def _page(asked: Mapping[str, str], report: Report) -> str:
    width = max(len(check.name) for check in report.checks)
    lines = [
        f"{MARKS[check.passed]:6}  {check.name:{width}}  {check.detail}" for check in report.checks
    ]
    failed = sum(check.passed is False for check in report.checks)
    summary = f"{failed} of {len(lines)} failed" if failed else "nothing failed"
    parts = [_fields(asked), _fields(report.health), "\n".join(lines), summary]
    return "\n\n".join(part for part in parts if part)


def _json(asked: Mapping[str, str], report: Report) -> str:
    checks = [vars(check) for check in report.checks]
    body = {**asked, "passed": report.passed, "health": report.health, "checks": checks}
    return json.dumps(body, indent=2)


def _without_secrets(text: str, api_key: str | None) -> str:
    if api_key:
        text = text.replace(api_key, HIDDEN)
    for pattern, shown in SECRETS:
        text = pattern.sub(shown, text)
    return text

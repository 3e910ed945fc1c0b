"""The documents' sam commands have only sub-commands and options that the installed SAM CLI has."""

import functools
import re
import shutil
from pathlib import Path

import pytest

from tests import commands
from tests.conftest import require
from tests.e2e.conftest import SAM, sam


@functools.cache
def _help(*names: str) -> str:
    require("docker", shutil.which(SAM), f"there is no SAM CLI at {SAM!r}")
    done = sam(*names, "--help", check=False)
    assert done.returncode == 0, f"sam has no {' '.join(names)}: {done.stderr}"
    return done.stdout


def _check(command: list[str]) -> None:
    names, options = commands.sam_options(command)
    _help(*names)  # there is one
    for option in options:
        known = re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", _help(*names))
        assert known, f"sam {' '.join(names)} has no {option}"


def test_every_sam_command_is_one(tmp_path: Path) -> None:
    found = [
        command for command in [*commands.run(tmp_path), *commands.inline()] if command[0] == "sam"
    ]
    assert len(found) > 8
    for command in found:
        _check(command)


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("sam deploi --guided", "sam has no deploi"),
        ("sam deploy --save-param", "has no --save-param"),
        ("sam local start-lambdas", "sam has no local start-lambdas"),
        ("sam local invoke --evnt e", "has no --evnt"),
    ],
)
def test_a_wrong_sam_command_is_refused(command: str, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        _check(command.split())

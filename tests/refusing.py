"""``python -m tests.refusing CALLS COMMAND...``: run a command that may not make the calls CALLS.

The kernel answers EPERM to each of them, in the command and in all that it starts, as AWS Lambda
does. CALLS are names, or paths of profiles in Docker's format, with commas between. Who makes the
call is killed if ``!`` stands before its name, as by systemd's ``SystemCallFilter``.
"""

import ctypes
import errno
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

LAMBDA = Path(__file__).with_name("lambda-seccomp.json")
"""What the real Lambda refuses, as far as public reports tell."""

_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000  # SCMP_ACT_* of seccomp.h
LIBRARY = "libseccomp.so.2"
"""Debian's and Ubuntu's package manager needs it, so it is there."""


def refuse(names: Iterable[str]) -> None:
    """Refuse the system calls `names` from here on, for this process and all that it starts."""
    seccomp = ctypes.CDLL(LIBRARY)
    seccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(seccomp.seccomp_init(_ALLOW))
    for name in names:
        number = seccomp.seccomp_syscall_resolve_name(name.removeprefix("!").encode())
        assert number != -1, f"there is no system call {name}"
        action = ctypes.c_uint32(_KILL if name.startswith("!") else _ERRNO | errno.EPERM)
        failed = seccomp.seccomp_rule_add(context, action, number, 0)
        assert not failed, f"{name}: {os.strerror(-failed)}"
    failed = seccomp.seccomp_load(context)
    assert not failed, os.strerror(-failed)


def refused_by(profile: Path) -> list[str]:
    """Return the names of the system calls that a profile in Docker's format refuses."""
    return [name for rule in json.loads(profile.read_text())["syscalls"] for name in rule["names"]]


def is_available() -> bool:
    """Return True where `refuse` can work."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


def main() -> None:
    """Replace this process by the command."""
    calls, *command = sys.argv[1:]
    names = set()
    for name in calls.split(","):
        names |= set(refused_by(Path(name))) if name.endswith(".json") else {name}
    refuse(names)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()

"""Confine a decoder before its first image, and try what holds it. Linux only.

A decoder is a large C library that reads a stranger's file. Code that takes one over should find a
process without files, network, children or credentials. Kernels and containers differ in what they
let a process give up: AWS Lambda, for one, refuses every ``prctl``. So each step is tried by
itself, none is needed to decode, and `find_walls` tells what holds.
"""

import ctypes
import errno
import mmap
import os
import resource
import signal
import socket
from collections.abc import Callable
from contextlib import suppress

from handler.images import seccomp
from handler.images.walls import Walls

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_MAP_NORESERVE = 0x4000  # of asm/mman.h; Python names it from 3.13 on

NOBODY = 65534
"""The user and group that Linux reserves for whoever should own nothing."""

LIFETIME = 3600
"""Seconds of CPU after which the kernel ends a decoder: an orphan that spins ends at last."""

TRIAL_MEGABYTES = 64
"""Limit on the memory of the process that tries the walls."""

_libc = ctypes.CDLL(None, use_errno=True)


# A confined process may write no file, so what it runs is not measured for coverage.


def become_nobody() -> None:  # pragma: no cover
    """Give up root's rights, if this process has them: limits do not bind root."""
    if os.geteuid() != 0:
        return
    steps: list[Callable[[], None]] = [
        lambda: os.setgroups([]),
        lambda: os.setresgid(NOBODY, NOBODY, NOBODY),
        lambda: os.setresuid(NOBODY, NOBODY, NOBODY),
    ]
    for step in steps:
        with suppress(OSError):  # a container may withhold the right to change the user
            step()


def confine(megabytes: int, parent: int) -> None:  # pragma: no cover
    """Give up, for good, all that decoding does not need, as far as the kernel takes it.

    The files that are open stay open, and no other can be opened. Memory may grow by `megabytes`.
    The process ends when `parent`, its parent, does.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, *map(ctypes.c_ulong, (signal.SIGKILL, 0, 0, 0)))
    if os.getppid() != parent:  # it ended before that was said
        os._exit(0)
    with suppress(OSError):  # /proc may be missing
        _limit(resource.RLIMIT_AS, _address_space() + megabytes * 2**20)
    _limit(resource.RLIMIT_CPU, LIFETIME)
    for kind in (
        resource.RLIMIT_NOFILE,  # 0, because a decoder could close what is open and open another
        resource.RLIMIT_FSIZE,  # no byte is written to a file
        resource.RLIMIT_NPROC,  # no process or thread is started; does not bind root
        resource.RLIMIT_MSGQUEUE,
        resource.RLIMIT_MEMLOCK,
        resource.RLIMIT_CORE,
    ):
        _limit(kind, 0)
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0)))
    seccomp.install()


def _limit(kind: int, most: int) -> None:  # pragma: no cover
    """Lower a limit to `most`, unless it is lower or the kernel refuses."""
    with suppress(OSError, ValueError):
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        resource.setrlimit(kind, (most, most))


def _address_space() -> int:  # pragma: no cover
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def find_walls(service: int) -> Walls:  # pragma: no cover
    """Try to pass each wall, as code that took over a decoder would; see `Walls`.

    `service` is the id of the service's process. A confined child process tries, because some
    kernels kill whoever does (with systemd's ``SystemCallFilter``, for one); then a wall is there.
    """
    zygote = os.getpid()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            confine(TRIAL_MEGABYTES, zygote)
            for trial in trials(service).values():
                os.write(writer, bytes([trial()]))
        finally:
            os._exit(0)
    os.close(writer)
    found = bytearray()
    while data := os.read(reader, len(Walls._fields)):
        found += data
    os.close(reader)
    if os.WIFSIGNALED(os.waitpid(child, 0)[1]):
        found.append(True)
    unknown = len(Walls._fields) - len(found)
    return Walls(*map(bool, found), *[False] * unknown)


def trials(service: int) -> dict[str, Callable[[], bool]]:  # pragma: no cover
    """Return a function for each field of `Walls`, in their order, that tells whether it holds.

    What is tried harms nobody where it succeeds.
    """
    return {
        "memory": lambda: _fails(lambda: _map(TRIAL_MEGABYTES + 1)),
        "cpu": lambda: not _fails(lambda: signal.setitimer(signal.ITIMER_PROF, 0)),
        "files": lambda: _fails(lambda: os.close(os.open("/", os.O_RDONLY))),
        "paths": lambda: _fails(lambda: os.unlink("/no/such/file"), but=FileNotFoundError),
        "network": lambda: _fails(socket.socket),
        "processes": lambda: _fails(_fork),
        "signals": lambda: _fails(lambda: os.kill(service, 0)),
        # Harmless, and not among the calls that decoding needs.
        "syscalls": lambda: _fails(lambda: os.getsid(0)),
        "ptrace": lambda: not _can_read_memory(service),
    }


def _fails(
    attempt: Callable[[], object], but: type[OSError] | tuple[()] = ()
) -> bool:  # pragma: no cover
    """Return True if the kernel refuses `attempt`; an error of type `but` is no refusal."""
    try:
        attempt()
    except but:
        return False
    except OSError:
        return True
    return False


def _map(megabytes: int) -> None:  # pragma: no cover
    """Ask for memory without using it."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    mmap.mmap(-1, megabytes * 2**20, flags).close()


def _fork() -> None:  # pragma: no cover
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


class _Buffer(ctypes.Structure):
    """``struct iovec``."""

    _fields_ = [("address", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def _can_read_memory(process: int) -> bool:  # pragma: no cover
    """Return True if this process may read the memory of `process`; `ptrace` asks for the same."""
    here = ctypes.create_string_buffer(1)
    ours = _Buffer(ctypes.addressof(here), 1)
    theirs = _Buffer(1, 1)  # nothing is there, which the kernel says only to who may look
    size = _libc.process_vm_readv(
        process, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, ctypes.c_ulong(0)
    )
    return size >= 0 or ctypes.get_errno() == errno.EFAULT


KEPT = 64 * 2**20
"""Bytes of freed memory that a decoder keeps for its next image: those of 12 megapixels, and more.

The kernel clears each page that it hands out. Taken fresh for every image, the memory of a JPEG of
12 megapixels costs 23 ms, a third of its decoding.
"""


def keep_memory() -> None:  # pragma: no cover
    """Let glibc keep up to `KEPT` freed bytes; by itself it keeps next to nothing."""
    mallopt = getattr(_libc, "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3  # the options' numbers in glibc's malloc.h
        mallopt(m_mmap_threshold, 32 << 20)  # larger blocks never come from what is kept
        mallopt(m_trim_threshold, KEPT)


def release_memory() -> None:
    """Give the memory that is free back to the system; else some images leave 200 MB behind."""
    if hasattr(_libc, "malloc_trim"):  # glibc's own
        _libc.malloc_trim(0)

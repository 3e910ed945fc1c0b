"""What a process that decodes may not do, told to the kernel. Linux only.

A decoder is a large C library reading what a stranger made. If one is taken over, the code that
runs then finds itself in a process without files, network, children or credentials.
"""

import ctypes
import os
import platform
import resource
import signal
import struct

_PR_SET_PDEATHSIG = 1
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2

# The system calls that decoding needs: memory, its socket, timers, the clock, and its own end.
# Everything else fails with EPERM: opening or removing files, sockets, processes, threads, signals.
# Numbers from Linux's arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
_X86_64 = {
    **{"read": 0, "write": 1, "close": 3, "fstat": 5, "poll": 7, "lseek": 8, "mmap": 9},
    **{"mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14},
    **{"rt_sigreturn": 15, "readv": 19, "writev": 20, "sched_yield": 24, "mremap": 25},
    **{"madvise": 28, "nanosleep": 35, "setitimer": 38, "getpid": 39, "sendto": 44},
    **{"recvfrom": 45, "sendmsg": 46, "recvmsg": 47, "exit": 60, "gettimeofday": 96},
    **{"getrusage": 98, "sigaltstack": 131, "gettid": 186, "futex": 202},
    **{"sched_getaffinity": 204, "restart_syscall": 219, "clock_gettime": 228},
    **{"clock_nanosleep": 230, "exit_group": 231, "ppoll": 271, "getrandom": 318, "rseq": 334},
}
_AARCH64 = {
    **{"close": 57, "lseek": 62, "read": 63, "write": 64, "readv": 65, "writev": 66, "ppoll": 73},
    **{"fstat": 80, "exit": 93, "exit_group": 94, "futex": 98, "nanosleep": 101},
    **{"setitimer": 103, "clock_gettime": 113, "clock_nanosleep": 115, "sched_getaffinity": 123},
    **{"sched_yield": 124, "restart_syscall": 128, "sigaltstack": 132, "rt_sigaction": 134},
    **{"rt_sigprocmask": 135, "rt_sigreturn": 139, "getrusage": 165, "gettimeofday": 169},
    **{"getpid": 172, "gettid": 178, "sendto": 206, "recvfrom": 207, "sendmsg": 211},
    **{"recvmsg": 212, "brk": 214, "munmap": 215, "mremap": 216, "mmap": 222, "mprotect": 226},
    **{"madvise": 233, "getrandom": 278, "rseq": 293},
}
_MACHINES = {"x86_64": (0xC000003E, _X86_64), "aarch64": (0xC00000B7, _AARCH64)}
"""Machine -> AUDIT_ARCH_* of linux/audit.h, and the calls allowed."""

_libc = ctypes.CDLL(None, use_errno=True)


# What a confined process runs is not measured: it may write no file, its coverage included.


def confine(megabytes: int, parent: int) -> None:  # pragma: no cover
    """Give up, for good, everything that decoding does not need.

    Only the files 0 to 3 are open, and no more can be. Memory may grow by `megabytes`. The process
    ends when `parent`, its parent, does.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that was said
        os._exit(0)
    most = _address_space() + megabytes * 2**20
    _limit(resource.RLIMIT_NOFILE, 4)  # no file, pipe or socket can be opened any more
    _limit(resource.RLIMIT_FSIZE, 0)  # no byte written to a file
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NPROC, 0)  # no child process; the kernel excepts root from this
    _limit(resource.RLIMIT_AS, most)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _allow_only_what_decoding_calls()


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


def _limit(kind: int, most: int) -> None:  # pragma: no cover
    resource.setrlimit(kind, (most, most))


def _address_space() -> int:  # pragma: no cover
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _prctl(option: int, value: int) -> None:  # pragma: no cover
    if _libc.prctl(option, *map(ctypes.c_ulong, (value, 0, 0, 0))):
        raise OSError(ctypes.get_errno(), f"prctl {option} failed")


class _Program(ctypes.Structure):
    """``struct sock_fprog`` of linux/filter.h."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def _allow_only_what_decoding_calls() -> None:  # pragma: no cover
    """Install the filter of system calls, where there is one for this machine and kernel.

    An emulated or an old kernel may have none. The limits above hold without it.
    """
    if platform.machine() not in _MACHINES:
        return
    code = _filter(*_MACHINES[platform.machine()])
    program = _Program(len(code) // 8, code)
    _libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(program))


def _filter(architecture: int, calls: dict[str, int]) -> bytes:
    """Classic BPF over ``struct seccomp_data``: allow `calls`, and let all others fail with EPERM.

    Source: linux/bpf_common.h and linux/seccomp.h; an instruction is (code, jt, jf, k).
    """
    load, jump_if_equal, answer = 0x20, 0x15, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | 1  # SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO with EPERM
    numbers = sorted(calls.values())
    program = [
        (load, 0, 0, 4),  # the architecture
        (jump_if_equal, 0, len(numbers) + 1, architecture),  # another one's numbers mean others
        (load, 0, 0, 0),  # the number of the call
        *((jump_if_equal, len(numbers) - at, 0, number) for at, number in enumerate(numbers)),
        (answer, 0, 0, refuse),
        (answer, 0, 0, allow),
    ]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)

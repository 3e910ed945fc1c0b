"""The filter of system calls that a decoder gives itself, where the kernel takes one."""

import ctypes
import platform
import struct

_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2  # for prctl
_SECCOMP_SET_MODE_FILTER = 1  # for seccomp

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

_SECCOMP_CALL = {"x86_64": 317, "aarch64": 277}
"""Machine -> the number of the system call ``seccomp``, for which C libraries have no function."""

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    """``struct sock_fprog`` of linux/filter.h."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


# A confined process may write no file, so what it runs is not measured for coverage.


def install() -> None:  # pragma: no cover
    """Let every system call that decoding does not need fail with EPERM from now on.

    Nothing happens on a machine that has no table here, nor where the kernel takes no filter: AWS
    Lambda refuses both system calls that install one, and emulated kernels know neither.
    """
    machine = platform.machine()
    if machine not in _MACHINES:
        return
    code = _filter(*_MACHINES[machine])
    program = ctypes.byref(_Program(len(code) // 8, code))
    flags = ctypes.c_ulong(0)
    if _libc.syscall(_SECCOMP_CALL[machine], _SECCOMP_SET_MODE_FILTER, flags, program):
        _libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), program)


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

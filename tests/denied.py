"""Runs a command whose processes get EPERM (or ENOSYS) from some system calls, as a container's or a unit's filter gives it:

    python3 tests/denied.py [--as ENOSYS] bpf,mkdirat COMMAND [ARGUMENT]...
"""

import ctypes
import errno
import os
import platform
import struct
import sys

CALLS = {"x86_64": {"bpf": 321, "mkdirat": 258}, "aarch64": {"bpf": 280, "mkdirat": 34}}
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
ALLOW, ERRNO = 0x7FFF0000, 0x00050000


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]


def deny(numbers, code):
    steps = [(LOAD, 0, 0, 0)]  # the number comes first in struct seccomp_data
    for number in numbers:
        steps += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ERRNO | code)]
    steps.append((RETURN, 0, 0, ALLOW))
    program = Program(len(steps), b"".join(struct.pack("=HBBI", *step) for step in steps))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or \
            libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0):
        sys.exit(f"cannot set a filter: {os.strerror(ctypes.get_errno())}")


def main(args):
    code = errno.EPERM
    if args[0] == "--as":
        code, args = getattr(errno, args[1]), args[2:]
    deny([CALLS[platform.machine()][name] for name in args[0].split(",")], code)
    os.execvp(args[1], args[1:])


if __name__ == "__main__":
    main(sys.argv[1:])

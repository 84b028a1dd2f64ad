"""The process of :class:`rlkit.tools.Python`: closes itself off, then runs code. It is started as a file and imports nothing of rlkit.

In this order, none of which can be taken back:

- Limits of the kernel: addresses, processor time, open files, no core dumps; and no file can grow (``RLIMIT_FSIZE`` is 0).
- No capabilities, and none to be had again, also for root.
- Landlock: only Python's own library and shared libraries can be opened, for reading; nothing can be made, removed or written; no TCP, and
  no signals to processes outside.
- seccomp: no sockets but pairs within, no new processes or programs, no signals (nor a file that sends some), tracing, mounts, keys or
  modules; the permissions, owners and times of files, which Landlock does not know, cannot be changed, nor can limits or priorities of
  other processes, nor can it be seen what others do with files; system calls that are younger than this file do not exist.

Threads are allowed, within the addresses. The life line is a pipe: when its other end closes, the kernel kills this process, which cannot
close its own end or change what it sends.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import errno
import fcntl
import io
import json
import linecache
import os
import resource
import select
import signal
import struct
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from typing import Any

CPU_SECONDS, FILES = 600, 64
READABLE = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/dev/null", "/dev/urandom")
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, PR_CAPBSET_DROP, FILTER = 38, 22, 24, 2
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT, CAPSET = 444, 445, 446, 126
READ_FILE, READ_DIR = 1 << 2, 1 << 3
BITS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # kinds of access that each version of Landlock knows
CLONE, CLONE3, CLONE_THREAD, X86_64 = 56, 435, 0x10000, 0xC000003E
CLOSE, IOCTL, DUP2, FCNTL, DUP3, PRLIMIT, CLOSE_RANGE, LAST_KNOWN = 3, 16, 33, 72, 292, 302, 436, 462
DENIED = {
    "sockets": (41, 42, 43, 49, 50, 288),
    "processes and programs": (57, 58, 59, 322),
    "signals": (62, 129, 200, 234, 297, 424, 434, 438),
    "other processes": (101, 141, 142, 144, 203, 251, 256, 279, 310, 311, 312, 314, 440, 448),
    "what others do with files": (253, 254, 294),
    "memory that outlives us": (29, 30, 31, 64, 65, 66, 68, 69, 70, 71, 240, 319, 447),
    "permissions, owners, times, attributes": (
        90,
        91,
        92,
        93,
        94,
        132,
        188,
        189,
        190,
        197,
        198,
        199,
        235,
        260,
        261,
        268,
        280,
        452,
    ),
    "mounts, namespaces, roots": (155, 161, 165, 166, 272, 308, 428, 429, 430, 431, 432, 433, 442),
    "the machine": (103, 135, 159, 163, 164, 167, 168, 169, 170, 171, 172, 173, 179, 227, 305, 443),
    "the kernel": (134, 175, 176, 206, 246, 248, 249, 250, 298, 300, 303, 304, 313, 317, 320, 321, 323, 425, 426, 427),
}  # by their numbers on x86-64
# Who gets the signals of a file, whether it sends any, leases and notices: with these a process signals others, or outlives the run.
F_SETFL, F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY = 4, 8, 10, 15, 1024, 1026
# TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: what Python asks. Others change attributes of files, or whom they signal.
IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
LIBC = ctypes.CDLL(None, use_errno=True)
SIZE = struct.Struct("<I")


def limit(gib: float) -> None:
    for what, most in (
        (resource.RLIMIT_AS, int(gib * 2**30)),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_NOFILE, FILES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))


def drop_capabilities() -> None:
    for capability in range(64):
        LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)  # fails where there is none of this number, or nothing to drop
    header, none = struct.pack("<Ii", 0x20080522, 0), bytes(24)
    if LIBC.syscall(CAPSET, header, none):
        raise OSError(ctypes.get_errno(), "capabilities could not be dropped")


def landlock(folders: Sequence[str]) -> None:
    """Nothing but these can be opened, and these for reading."""
    version = LIBC.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 1:
        raise OSError(ctypes.get_errno(), "the kernel has no Landlock, or it is switched off")
    handled = [(1 << BITS.get(version, 16)) - 1, *([3] if version >= 4 else []), *([3] if version >= 6 else [])]
    attributes = struct.pack(f"<{len(handled)}Q", *handled)
    rules = LIBC.syscall(LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    if rules < 0:
        raise OSError(ctypes.get_errno(), "Landlock made no rules")
    for path in folders:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        access = READ_FILE | (READ_DIR if os.path.isdir(path) else 0)
        if LIBC.syscall(LANDLOCK_ADD, rules, 1, struct.pack("<Qi", access, place), 0):
            raise OSError(ctypes.get_errno(), f"Landlock refused {path}")
        os.close(place)
    if LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or LIBC.syscall(LANDLOCK_RESTRICT, rules, 0):
        raise OSError(ctypes.get_errno(), "Landlock could not be switched on")
    os.close(rules)


def seccomp(life: int) -> None:
    """System calls by number: those of DENIED fail with EPERM, as do calls of another architecture's numbering, and what would take the
    life line away. Those that this file does not know do not exist.
    """

    def op(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("<HBBI", code, yes, no, k)

    load, equal, at_least, masked, end = 0x20, 0x15, 0x35, 0x54, 0x06
    allow, deny, missing, kill = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS, 0x80000000

    def by_argument(number: int, argument: int, values: Sequence[int], then: int, otherwise: int) -> list[bytes]:
        """A call whose verdict is ``then`` where an argument has one of these values."""
        body = [op(load, 16 + 8 * argument)]
        for value in values:
            body += [op(equal, value, 0, 1), op(end, then)]
        body.append(op(end, otherwise))
        return [op(equal, number, 0, len(body)), *body]

    program = [
        op(load, 4),
        op(equal, X86_64, 1),
        op(end, kill),
        op(load, 0),
        op(at_least, 0x40000000, 0, 1),
        op(end, deny),
        op(at_least, LAST_KNOWN + 1, 0, 1),
        op(end, missing),
    ]
    for number in (CLONE3, CLOSE_RANGE):  # whoever tries them takes clone and close then
        program += [op(equal, number, 0, 1), op(end, missing)]
    for number in sorted(n for numbers in DENIED.values() for n in numbers):
        program += [op(equal, number, 0, 1), op(end, deny)]
    program += [
        op(equal, CLONE, 0, 4),
        op(load, 16),
        op(masked, CLONE_THREAD),
        op(equal, CLONE_THREAD, 1),
        op(end, deny),
        op(load, 0),
    ]
    of_itself = 0  # as a process number
    program += by_argument(PRLIMIT, 0, [of_itself], allow, deny)
    program += by_argument(FCNTL, 1, [F_SETFL, F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY], deny, allow)
    program += by_argument(IOCTL, 1, IOCTLS, allow, deny)
    for number, argument in ((CLOSE, 0), (DUP2, 1), (DUP3, 1)):
        program += by_argument(number, argument, [life], deny, allow)
    program.append(op(end, allow))
    code = ctypes.create_string_buffer(b"".join(program))
    head = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(code)))
    if LIBC.prctl(PR_SET_SECCOMP, FILTER, head, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp could not be switched on")


def end_with(life: int) -> None:
    """SIGKILL when the other end of ``life`` closes."""
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | fcntl.FASYNC)
    if select.select([life], [], [], 0)[0]:
        os._exit(1)


class Shown(io.TextIOBase):
    """Keeps the beginning of what is written."""

    def __init__(self, most: int) -> None:
        self.most, self.left, self.parts, self.lost = most, most, list[str](), 0

    def write(self, text: str) -> int:
        kept = text[: self.left]
        self.parts.append(kept)
        self.left -= len(kept)
        self.lost += len(text) - len(kept)
        return len(text)

    def writable(self) -> bool:
        return True

    def text(self) -> str:
        more = f"\n[{self.lost} more characters]" if self.lost else ""
        return "".join(self.parts) + more


def run(code: str, names: dict[str, Any], number: int, most: int) -> str:
    """What the code prints, and the value of its last line where that is an expression; of an exception, where it was raised."""
    shown, file = Shown(most), f"<call {number}>"
    linecache.cache[file] = (len(code), None, code.splitlines(True), file)
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        try:
            tree = ast.parse(code, file)
            last = tree.body[-1] if tree.body else None
            if isinstance(last, ast.Expr):
                tree.body.pop()
            exec(compile(tree, file, "exec"), names)
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), file, "eval"), names)
                if value is not None:
                    print(repr(value))
        except BaseException as error:
            inside = error.__traceback__.tb_next if error.__traceback__ is not None else None
            shown.write("".join(traceback.format_exception(type(error), error, inside)))
    return shown.text().strip()


def main() -> None:
    gib, most, life = json.loads(sys.argv[1])
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)

    def send(message: dict[str, Any]) -> None:
        data = json.dumps(message).encode()
        view = memoryview(SIZE.pack(len(data)) + data)
        while view:
            view = view[os.write(answers, view) :]

    try:
        end_with(life)
        limit(gib)
        drop_capabilities()
        landlock([*READABLE, sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")])
        seccomp(life)
    except (OSError, ValueError) as error:
        send({"missing": str(error)})
        return
    send({"missing": ""})
    names: dict[str, Any] = {"__name__": "__main__"}
    with os.fdopen(requests, "rb") as stream:
        for number in range(1, sys.maxsize):
            head = stream.read(SIZE.size)
            if len(head) < SIZE.size:
                return
            code = json.loads(stream.read(SIZE.unpack(head)[0]))
            send({"shown": run(code, names, number, most)})


if __name__ == "__main__":
    main()

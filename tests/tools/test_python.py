"""Code of a model: what it computes, and that it cannot do anything else."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlkit.tools import Python, ToolError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("closed_off")]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Python]:
    made = Python(seconds=20)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("1 + 1", "2"),
        ("print('a')\nx = 3", "a"),
        ("x = [1, 2]\nx", "[1, 2]"),
        ("None", ""),
        ("import math, json, itertools, fractions\nfractions.Fraction(1, 3) * math.factorial(4)", "Fraction(8, 1)"),
        ("import sys\nprint('seen', file=sys.stderr)", "seen"),
        ("import threading\nt = threading.Thread(target=print, args=('thread',))\nt.start()\nt.join()", "thread"),
        ("import asyncio\nasync def f():\n    return 5\nasyncio.run(f())", "5"),
    ],
)
def test_what_code_shows(sandbox: Python, code: str, shown: str) -> None:
    assert sandbox.run(code) == shown


def test_exceptions_are_shown_with_their_lines(sandbox: Python) -> None:
    assert sandbox.run("def f():\n    return 1 / 0\nf()").splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert "    return 1 / 0" in sandbox.run("def f():\n    return 1 / 0\nf()") and "sandbox.py" not in sandbox.run(
        "1 / 0"
    )
    assert sandbox.run("1 +").splitlines()[-1].startswith("SyntaxError")
    assert sandbox.run("import sys\nsys.exit(3)").splitlines()[-1] == "SystemExit: 3"


def test_variables_are_kept_or_not() -> None:
    kept, fresh = Python(), Python(keep=False)
    for one in (kept, fresh):
        one.run("x = 41")
    assert kept.run("x + 1") == "42" and "NameError" in fresh.run("x + 1")
    kept.close()
    assert "NameError" in kept.run("x")
    kept.close()


REFUSED = {
    "a connection": "import socket\nsocket.create_connection(('127.0.0.1', 22))",
    "a socket": "import socket\nsocket.socket(socket.AF_UNIX)",
    "a fork": "import os\nos.fork()",
    "a program": "import subprocess\nsubprocess.run(['true'])",
    "another program in its place": "import os\nos.execv('/bin/true', ['true'])",
    "a file to read": "open('/etc/passwd')",
    "the environment of the run": "import os\nopen(f'/proc/{os.getppid()}/environ', 'rb')",
    "the memory of the run": "import os\nopen(f'/proc/{os.getppid()}/mem', 'rb')",
    "a folder": "import os\nos.listdir('/')",
    "a file to write": "open('/tmp/rlkit-was-here', 'w')",
    "a file in its own library": "import os\nopen(os.path.join(os.path.dirname(os.__file__), 'rlkit_was_here'), 'w')",
    "a link": "import os\nos.symlink('/etc', '/tmp/rlkit-was-here')",
    "a removal": "import os\nos.remove('FILE')",
    "another length": "import os\nos.truncate('FILE', 0)",
    "permissions": "import os\nos.chmod('/tmp', 0o700)",
    "a signal to the run": "import os\nos.kill(os.getppid(), 9)",
    "a signal to everybody": "import os\nos.kill(-1, 9)",
    "limits of the run": "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
    "its own limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)",
    "its priority": "import os\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
    "memory outside its limits": "import os\nos.memfd_create('x')",
    "a namespace": "import ctypes, os\nif ctypes.CDLL(None, use_errno=True).unshare(0x10000000):\n    raise PermissionError",
    "a file that signals the run": "import fcntl, os\nfcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid())",
    "a file that signals the run, in another way": "import fcntl, os\nfcntl.fcntl(os.pipe()[0], 15, bytes(8))",
    "a socket that signals the run": "import fcntl, os, socket\nfcntl.ioctl(socket.socketpair()[0], 0x8901, bytes(4))",
    "a signal of its choice from a file": "import fcntl, os\nfcntl.fcntl(os.pipe()[0], 10, 9)",
    "a lease of a file": "import fcntl, os\nfcntl.fcntl(os.open(os.__file__, 0), fcntl.F_SETLEASE, fcntl.F_UNLCK)",
    "notices of what others do in a folder": "import ctypes\nif ctypes.CDLL(None).inotify_init1(0) < 0:\n    raise PermissionError",
    "attributes of a file": "import fcntl, os\nfcntl.ioctl(os.open(os.__file__, 0), 0x40086602, bytes(8))",
    "a kernel's messages": "import socket\nsocket.socket(16, socket.SOCK_RAW, 0)",
    "tracing": "import ctypes, os\nif ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0):\n    raise PermissionError",
    "a mount": "import ctypes\nif ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None):\n    raise PermissionError",
    "numbers of other architectures": "import ctypes\nif ctypes.CDLL(None).syscall(0x40000000 + 41, 2, 1, 0) < 0:\n    raise PermissionError",
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_it_cannot_have(sandbox: Python, what: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    last = sandbox.run(REFUSED[what].replace("FILE", str(tmp_path / "file"))).splitlines()[-1]
    assert last.startswith(("PermissionError", "ValueError: not allowed to raise maximum limit")), last
    assert (tmp_path / "file").read_text() == "kept" and not os.path.exists("/tmp/rlkit-was-here")
    assert sandbox.run("1") == "1"


def test_it_sees_nothing_of_the_environment(sandbox: Python, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    one = Python()
    assert "hush" not in one.run("import os\ndict(os.environ)") + one.run("import sys\nsys.argv, sys.path, sys.flags")
    one.close()


def test_memory_is_bounded_and_goes_on(sandbox: Python) -> None:
    assert sandbox.run("b'x' * 2**32").splitlines()[-1] == "MemoryError"
    many = "import threading, time\nfor _ in range(10**6):\n    threading.Thread(target=time.sleep, args=(1,)).start()"
    assert "can't start new thread" in sandbox.run(many)
    assert sandbox.run("2") == "2"


def test_output_is_bounded() -> None:
    one = Python(output=50)
    assert one.run("print('y' * 10**7)") == "y" * 50 + "\n[9999951 more characters]"
    assert one.run("'z' * 1000") == "'" + "z" * 49 + "\n[953 more characters]"
    one.close()


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time\ntime.sleep(60)",
        "import signal\nsignal.alarm(0)\nimport re\nre.match('(a+)+$', 'a' * 40 + 'b')",
    ],
)
def test_time_is_bounded(code: str) -> None:
    one = Python(seconds=0.5)
    one.run("x = 1")
    process = one._process
    with pytest.raises(
        ToolError, match=r"did not end within 0\.5 s; its process was ended, and all variables are gone"
    ):
        one.run(code)
    assert process is not None and process.poll() == -9
    assert "NameError" in one.run("x") and one.run("1") == "1"
    one.close()


HOSTILE = {
    "it ends": "import os\nos._exit(0)",
    "it crashes": "import ctypes\nctypes.string_at(0)",
    "it writes into the pipes": "import os\nfor fd in range(3, 60):\n    try:\n        os.write(fd, b'garbage' * 100)\n    except OSError: pass",
    "it announces more than it may say": "import os\nfor fd in range(3, 60):\n    try:\n        os.write(fd, b'\\xff' * 8)\n    except OSError: pass",
    "it closes the pipes": "import os\nos.closerange(3, 60)",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_process_that_misbehaves_is_replaced(what: str) -> None:
    one = Python(seconds=20)
    with pytest.raises(ToolError, match="the code ended its process; all variables are gone"):
        one.run(HOSTILE[what])
    assert one.run("1") == "1"
    one.close()


LIFE = """
import contextlib, fcntl, os, threading, time
for fd in range(3, 64):
    with contextlib.suppress(OSError):
        if fcntl.fcntl(fd, fcntl.F_GETFL) & 0o20000:  # it sends a signal: the life line
            for way in (
                lambda: fcntl.fcntl(fd, fcntl.F_SETFL, 0),
                lambda: fcntl.fcntl(fd, fcntl.F_SETOWN, 0),
                lambda: fcntl.ioctl(fd, 0x5452, bytes(4)),
                lambda: os.dup2(os.open("/dev/null", 0), fd),
                lambda: os.dup2(os.open("/dev/null", 0), fd, False),
                lambda: os.close(fd),
                lambda: os.closerange(fd, fd + 1),
            ):
                with contextlib.suppress(OSError):
                    way()
"""


@pytest.mark.parametrize(
    "code",
    ["while True: pass", LIFE + "time.sleep(60)", LIFE + "threading.Thread(target=time.sleep, args=(60,)).start()"],
)
def test_it_ends_with_the_run_whatever_its_code_does(code: str) -> None:
    script = (
        "import sys, threading, time\nfrom rlkit.tools import Python\np = Python(seconds=60)\np.run('1')\nprint(p._process.pid, flush=True)\n"
        f"threading.Thread(target=p.run, args=({code!r},), daemon=True).start()\ntime.sleep(2)\nprint('now', flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as run:
        assert run.stdout is not None
        pid = int(run.stdout.readline())
        assert run.stdout.readline() == "now\n"
        run.kill()
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.1)
    os.kill(pid, 9)
    raise AssertionError("it lives on")


def test_calls_of_many_episodes_run_side_by_side() -> None:
    async def one(k: int) -> str:
        async with Python() as own:
            await own.python(f"x = {k}")
            return await own.python("x * x")

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(one(k) for k in range(4)))

    assert asyncio.run(all_of_them()) == ["0", "1", "4", "9"]

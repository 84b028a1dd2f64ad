"""Code rewarded by the tests that it passes, each in a process that is closed off (:class:`rlkit.tools.Python`)."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rlkit.errors import RewardError
from rlkit.tools.python import Python
from rlkit.tools.using import ToolError

BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)
SHOWN = 200_000  # characters of output that are compared


def passed(
    response: str, tests: Sequence[str | Mapping[str, Any]], seconds: float = 8.0, memory: float = 0.5
) -> dict[str, float]:
    """``share`` of the tests that pass, and ``all`` of them: 1 or 0.

    The code is the last block of the answer in a fence of three backticks, or all of it. A test is Python that raises where the code is
    wrong (``assert add(1, 2) == 3``), or ``{input: ..., output: ...}``: what the program reads and what it has to print, compared line by
    line without space at the ends. Every test has a process of its own; ``seconds`` are for all of them, and what is left when they are
    over has not passed.

    Raises:
        RewardError: a row without tests, or a test that is neither.
    """
    if not tests or isinstance(tests, str):
        raise RewardError("a row has no list of `tests`; each is Python text or {input: ..., output: ...}")
    blocks = BLOCK.findall(response.rpartition("</think>")[2])
    code, end = blocks[-1] if blocks else response, time.monotonic() + seconds
    good = sum(_passes(code, test, end - time.monotonic(), memory) for test in tests)
    return {"share": good / len(tests), "all": float(good == len(tests))}


def _passes(code: str, test: str | Mapping[str, Any], left: float, memory: float) -> bool:
    if left <= 0:
        return False
    if isinstance(test, str):
        # Drawn anew: only code that searches its own process finds out what it would have to print.
        sign = secrets.token_hex(16)
        program, wanted = f"{code}\n{test}\n{sign!r}", repr(sign)
    elif isinstance(test, Mapping) and "output" in test:
        given = str(test.get("input", ""))
        program, wanted = f"import io, sys\nsys.stdin = io.StringIO({given!r})\n{code}\npass", str(test["output"])
    else:
        raise RewardError(f"a test is Python text or {{input: ..., output: ...}}; found {type(test).__name__}")
    sandbox = Python(seconds=left, memory=memory, output=SHOWN)
    try:
        shown = sandbox.run(program)
    except ToolError:
        return False
    finally:
        sandbox.close()
    return shown.splitlines()[-1:] == [wanted] if isinstance(test, str) else _lines(shown) == _lines(wanted)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]

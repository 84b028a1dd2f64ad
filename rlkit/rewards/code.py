"""Code rewarded by the tests that it passes, each in a process that is closed off (:class:`rlkit.tools.Python`)."""

from __future__ import annotations

import json
import math
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

from rlkit.errors import RewardError
from rlkit.rewards.functions import rows_checked_by
from rlkit.tools.python import Python
from rlkit.tools.using import ToolError

BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)
SHOWN = 200_000  # characters of output that are compared
CLOSE = 1e-6  # numbers that a function returned are the same up to this, relative or absolute
FORMS = "Python text, {input: ..., output: ...} or {call: NAME, args: [...], result: ...}"

# What reads from standard input and writes to standard output, as bytes, too. It may end itself.
PROGRAM = """
import io, sys
sys.stdin = io.TextIOWrapper(io.BytesIO({given!r}.encode()))
shown, sys.stdout = sys.stdout, io.TextIOWrapper(io.BytesIO(), write_through=True)
try:
    exec(compile({code!r}, "<answer>", "exec"), {{"__name__": "__main__"}})
except SystemExit as end:
    if end.code not in (None, 0):
        raise
shown.write(sys.stdout.buffer.getvalue().decode(errors="replace"))
None
"""

# What defines a function, or a class Solution with a method of its name, where such problems expect some names to be there. The result is
# shown behind a sign that the code cannot know.
CALL = """
import json
names = {{"__name__": "answer"}}
exec("import bisect, collections, functools, heapq, itertools, math\\nfrom collections import *\\nfrom typing import *", names)
exec(compile({code!r}, "<answer>", "exec"), names)
function = names[{name!r}] if {name!r} in names else getattr(names["Solution"](), {name!r})
print({sign!r} + json.dumps(function(*json.loads({given!r}))))
"""


@dataclass(frozen=True)
class CodeTest:
    """One test: ``code`` that raises where the answer is wrong; or a program's ``given`` input and ``wanted`` output; or, with a ``name``,
    a function's arguments and result. ``wrapped``: the result may stand in a list of one. ``seconds``: of this test.
    """

    code: str | None = None
    given: Any = ""
    wanted: Any = ""
    name: str | None = None
    wrapped: bool = False
    seconds: float | None = None

    def passes(self, code: str, seconds: float, memory: float) -> bool:
        """Whether an answer's code does, within so many seconds."""
        if seconds <= 0:
            return False
        # Drawn anew: only code that searches its own process finds out what it would have to print.
        sign = secrets.token_hex(16)
        if self.code is not None:
            program = f"{code}\n{self.code}\n{sign!r}"
        elif self.name is None:
            program = PROGRAM.format(given=self.given, code=code)
        else:
            program = CALL.format(given=json.dumps(self.given), code=code, name=self.name, sign=sign)
        sandbox = Python(seconds=seconds, memory=memory, output=SHOWN)
        try:
            shown = sandbox.run(program)
        except ToolError:
            return False
        finally:
            sandbox.close()
        last = next(iter(shown.splitlines()[-1:]), "")
        if self.code is not None:
            return last == repr(sign)
        if self.name is None:
            return same_output(shown, str(self.wanted))
        if not last.startswith(sign):
            return False
        result = json.loads(last.removeprefix(sign))
        inside = (
            self.wanted[0] if self.wrapped and isinstance(self.wanted, list) and len(self.wanted) == 1 else self.wanted
        )
        return same_value(result, self.wanted) or same_value(result, inside)


def read_tests(tests: Any, fn_name: str | None = None) -> list[CodeTest]:
    """The tests of a row, in one of these forms, or as JSON text of one:

    - a list, each of: Python text that raises where the code is wrong (``assert add(1, 2) == 3``); ``{input: TEXT, output: TEXT}``, what a
      program reads and has to print; ``{call: NAME, args: [...], result: ...}``, of a function or of a method of ``Solution``. A mapping
      may have ``seconds`` for itself.
    - LiveCodeBench's: ``{input, output, testtype: functional}``, with an argument in each line of ``input`` and ``fn_name`` beside it.
    - APPS': ``{inputs: [...], outputs: [...]}``, with ``fn_name`` where they are arguments and results.

    Raises:
        RewardError: it is none of them, or there is no test.
    """
    if isinstance(tests, str):
        try:
            tests = json.loads(tests)
        except ValueError:
            raise RewardError(
                f"a row has no list of `tests`: it has a text that is not JSON; each test is {FORMS}"
            ) from None
    if isinstance(tests, Mapping) and "inputs" in tests:
        return _of_apps(tests, tests.get("fn_name", fn_name))
    if not isinstance(tests, Sequence) or not tests:
        raise RewardError(f"a row has no list of `tests`, or an empty one; each test is {FORMS}")
    return [_read(test, number, fn_name) for number, test in enumerate(tests)]


def _of_apps(tests: Mapping[str, Any], name: str | None) -> list[CodeTest]:
    inputs, outputs = tests["inputs"], tests.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs) or not inputs:
        raise RewardError("`tests` has inputs, but not as many outputs in a list beside them, or none at all")
    if name is not None:
        wrong = next((i for i, x in enumerate(inputs) if not isinstance(x, list)), None)
        if wrong is not None:
            raise RewardError(f"`tests`: inputs[{wrong}] is no list of arguments of {name}")
        return [CodeTest(given=x, wanted=y, name=name, wrapped=True) for x, y in zip(inputs, outputs, strict=True)]
    return [CodeTest(given=_text(x), wanted=_text(y)) for x, y in zip(inputs, outputs, strict=True)]


def _text(x: Any) -> str:
    """Lines may stand in a list."""
    return "\n".join(map(str, x)) if isinstance(x, list) else str(x)


def _read(test: Any, number: int, fn_name: str | None) -> CodeTest:
    where = f"`tests`: number {number}"
    if isinstance(test, str):
        try:
            compile(test, "<test>", "exec")
        except (SyntaxError, ValueError) as error:
            raise RewardError(f"{where} is no Python: {error}") from None
        return CodeTest(code=test)
    if not isinstance(test, Mapping):
        raise RewardError(f"{where}: a test is {FORMS}; found {type(test).__name__}")
    seconds = test.get("seconds")
    if seconds is not None and not (isinstance(seconds, int | float) and seconds > 0):
        raise RewardError(f"{where}: seconds is {seconds!r}; it must be a positive number")
    if test.get("call") is not None:
        if not isinstance(test.get("args"), list) or "result" not in test:
            raise RewardError(f"{where} calls {test['call']!r} and needs `args`, a list, and `result`")
        return CodeTest(given=test["args"], wanted=test["result"], name=str(test["call"]), seconds=seconds)
    if test.get("output") is None:
        raise RewardError(f"{where}: a test is {FORMS}; found a mapping with {', '.join(map(str, test)) or 'nothing'}")
    given = test.get("input") or ""
    if test.get("testtype") != "functional":
        return CodeTest(given=_text(given), wanted=_text(test["output"]), seconds=seconds)
    if fn_name is None:
        raise RewardError(f"{where} is of a function, but the row has no `fn_name`")
    try:
        arguments = [json.loads(line) for line in str(given).splitlines() if line.strip()]
        return CodeTest(given=arguments, wanted=json.loads(test["output"]), name=fn_name, seconds=seconds)
    except ValueError as error:
        raise RewardError(f"{where}: arguments and result must be JSON, an argument in each line ({error})") from None


def check_row(tests: Any, fn_name: str | None = None) -> None:
    """Raises RewardError for a row whose tests nobody could pass."""
    read_tests(tests, fn_name)


@rows_checked_by(check_row)
def passed(
    response: str,
    tests: Any,
    fn_name: str | None = None,
    seconds: float = 8.0,
    memory: float = 0.5,
    each: float | None = None,
    score: Literal["both", "share", "all"] = "both",
) -> dict[str, float]:
    """``share`` of the tests that pass, and ``all`` of them: 1 or 0.

    The code is the last block of the answer in a fence of three backticks, or all of it. :func:`read_tests` says what tests are; the output
    of a program is compared line by line without space at the ends, and numbers by value. Every test has a process of its own; ``seconds``
    are for all of them, and what is left when they are over has not passed; ``each`` is for one test. ``memory`` is in GiB.

    ``score``: both, of which the reward is the sum, or only one of them. With ``all`` the first test that fails is the last.

    Raises:
        RewardError: a row without tests, or a test that is none. Before a run starts all its rows are looked at.
    """
    blocks = BLOCK.findall(response.rpartition("</think>")[2])
    code, end = blocks[-1] if blocks else response, time.monotonic() + seconds
    known, good = read_tests(tests, fn_name), 0
    for test in known:
        left = end - time.monotonic()
        one = min(x for x in (left, test.seconds, each) if x is not None)
        ok = test.passes(code, one, memory)
        good += ok
        if score == "all" and not ok:
            break
    found = {"share": good / len(known), "all": float(good == len(known))}
    return found if score == "both" else {score: found[score]}


def same_output(shown: str, wanted: str) -> bool:
    """Whether two outputs are the same line by line, space at the ends aside; words of a line may be different spellings of a number."""
    ours, theirs = (list(_lines(text)) for text in (shown, wanted))
    return len(ours) == len(theirs) and all(a == b or _same_words(a, b) for a, b in zip(ours, theirs, strict=True))


def _lines(text: str) -> Iterator[str]:
    return (line.strip() for line in text.strip().splitlines())


def _same_words(a: str, b: str) -> bool:
    ours, theirs = a.split(), b.split()
    return len(ours) == len(theirs) and all(
        x == y or (_number(x) is not None and _number(x) == _number(y)) for x, y in zip(ours, theirs, strict=True)
    )


def _number(word: str) -> Decimal | None:
    try:
        found = Decimal(word)
    except InvalidOperation:
        return None
    return found if found.is_finite() else None


def same_value(a: Any, b: Any) -> bool:
    """Whether two values of JSON are the same; numbers up to ``CLOSE``."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same_value, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_value(a[k], b[k]) for k in a)
    if isinstance(a, float) or isinstance(b, float):
        numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (a, b))
        return numbers and math.isclose(a, b, rel_tol=CLOSE, abs_tol=CLOSE)
    return type(a) is type(b) and bool(a == b)

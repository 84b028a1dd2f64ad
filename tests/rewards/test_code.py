"""Code against its tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlkit.data import Data
from rlkit.data.prompts import load_prompts
from rlkit.errors import DataError, RewardError
from rlkit.model.tiny import make_tokenizer
from rlkit.rewards import RewardSpec, Scorer
from rlkit.rewards.code import passed, same_output, same_value
from rlkit.types import Prompt, Rollout

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("closed_off")]

ADD = "I would write:\n```python\ndef add(a, b):\n    return a + b\n```\n"
SOLUTION = "```python\nclass Solution:\n    def halves(self, xs: List[int]) -> List[float]:\n        return tuple(x / 2 for x in xs)\n```"
SUMS = "```python\nn = int(input())\nprint(sum(map(int, input().split())))\n```"


@pytest.mark.parametrize(
    ("response", "tests", "share"),
    [
        (ADD, ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"], 1.0),
        (ADD, ["assert add(1, 2) == 3", "assert add(1, 2) == 4"], 0.5),
        ("```\ndef add(a, b): return 0\n```\nNo:\n" + ADD, ["assert add(1, 2) == 3"], 1.0),
        ("def add(a, b):\n    return a + b", ["assert add(1, 2) == 3"], 1.0),
        ("<think>```python\ndef add(a, b): return 0\n```</think>" + ADD, ["assert add(1, 2) == 3"], 1.0),
        ("no code at all", ["assert add(1, 2) == 3"], 0.0),
        (SUMS, [{"input": "3\n1 2 3\n", "output": "6\n"}, {"input": "1\n5", "output": "5"}, {"input": "1\n5", "output": "6"}], 2 / 3),
        ("```python\nprint(input())\n1 / 0\n```", [{"input": "a", "output": "a"}], 0.0),
        ("```python\nimport os\nos._exit(0)\n```", ["assert True"], 0.0),
        ("```python\nprint('yes')\nraise SystemExit\n```", ["assert False"], 0.0),
        ("```python\nimport sys\nprint(sys.stdin.buffer.read().decode().upper(), end='')\nsys.exit()\n```", [{"input": "a\nb", "output": "A\nB"}], 1.0),
        ("```python\nimport sys\nsys.stdout.buffer.write(b'0.50 x')\n```", [{"output": "0.5 x"}, {"output": "0.5 y"}], 0.5),
        ("```python\nprint(1)\nraise SystemExit(3)\n```", [{"output": "1"}], 0.0),
        (ADD, [{"call": "add", "args": [1, 2], "result": 3}, {"call": "add", "args": [[1], [2]], "result": [1, 2]}, {"call": "add", "args": [1, 2], "result": 4}, {"call": "sub", "args": [], "result": 0}], 0.5),
        (SOLUTION, [{"call": "halves", "args": [[1, 2]], "result": [0.5, 1]}], 1.0),
        ("```python\ndef add(a, b):\n    print(3)\n    raise SystemExit\n```", [{"call": "add", "args": [1, 2], "result": 3}], 0.0),
        ("```python\nopen('/etc/passwd')\n```", ["assert True"], 0.0),
    ],
)  # fmt: skip
def test_the_share_of_tests_that_pass(response: str, tests: list[object], share: float) -> None:
    assert passed(response, tests) == {"share": pytest.approx(share), "all": float(share == 1)}  # type: ignore[arg-type]


def test_time_is_for_all_tests_together() -> None:
    slow = "```python\nimport time\ndef add(a, b):\n    if a: time.sleep(60)\n    return a + b\n```"
    assert passed(slow, ["assert add(0, 2) == 2", "assert add(1, 2) == 3", "assert add(0, 3) == 3"], seconds=1.0)[
        "share"
    ] == pytest.approx(1 / 3)


def test_one_slow_test_may_have_less_time() -> None:
    slow = "```python\nimport time\ndef f(a):\n    if a: time.sleep(60)\n    return a\n```"
    calls = [{"call": "f", "args": [a], "result": a} for a in (1, 0, 0)]
    assert passed(slow, calls, seconds=20, each=1.0)["share"] == pytest.approx(2 / 3)
    assert passed(slow, [{**calls[0], "seconds": 0.5}, *calls[1:]], seconds=20, score="share") == {
        "share": pytest.approx(2 / 3)
    }


def test_all_or_nothing_ends_with_the_first_that_fails() -> None:
    """The second test would take longer than the test may."""
    wrong = "```python\nimport time\ndef f(a):\n    time.sleep(a)\n    return 1\n```"
    calls = [{"call": "f", "args": [0], "result": 0}, {"call": "f", "args": [600], "result": 1}]
    assert passed(wrong, calls, seconds=600, score="all") == {"all": 0.0}
    assert passed(ADD, [{"call": "add", "args": [1, 2], "result": 3}], score="all") == {"all": 1.0}


@pytest.mark.parametrize(
    ("tests", "fn_name"),
    [
        ({"inputs": ["1 2\n", ["3", "4"]], "outputs": ["3\n", ["7"]]}, None),
        (json.dumps({"inputs": [[1, 2], [3, 4]], "outputs": [[3], 7], "fn_name": "add"}), None),
        (json.dumps([{"input": "1\n2", "output": "3", "testtype": "functional"}]), "add"),
        ([{"input": "1\n2", "output": "3", "testtype": "stdin"}], None),
    ],
)
def test_rows_of_published_sets(tests: Any, fn_name: str | None) -> None:
    """APPS, both forms, and LiveCodeBench, both forms; lists of lines are lines."""
    both = "```python\nimport sys\ndef add(a, b):\n    return a + b\nif __name__ == '__main__':\n    print(add(*map(int, sys.stdin.read().split())))\n```"
    assert passed(both, tests, fn_name) == {"share": 1.0, "all": 1.0}
    assert passed("```python\ndef add(a, b): return 0\nprint(0)\n```", tests, fn_name)["all"] == 0


def test_values_and_outputs_that_are_the_same() -> None:
    assert same_value([1, {"a": 0.1 + 0.2}], [1.0, {"a": 0.3}]) and same_value([], []) and same_value("x", "x")
    assert not any(
        same_value(a, b)
        for a, b in ((1, True), (1, "1"), ([1], [1, 2]), ({"a": 1}, {"b": 1}), (1.0, 1.001), (True, 1.0))
    )
    assert same_output(" a  b\n1.0 ", "a  b\n1") and same_output("1e3", "1000.00") and not same_output("nan", "NaN")
    assert not any(same_output(a, b) for a, b in (("1", "1\n2"), ("1 2", "1"), ("a", "b"), ("1", "one")))


@pytest.mark.parametrize("tests", [[], "assert True", [3]])
def test_a_row_without_tests_is_told(tests: object) -> None:
    with pytest.raises(RewardError, match=r"no list of `tests`|a test is Python text"):
        passed(ADD, tests)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"tests": ["assert add(1, 2 == 3"]}, "number 0 is no Python"),
        ({"tests": [{"input": "1"}]}, "found a mapping with input"),
        (
            {"tests": [{"output": "1"}, {"call": "add", "args": 3, "result": 3}]},
            "number 1 calls 'add' and needs `args`, a list",
        ),
        ({"tests": [{"output": "1", "seconds": -1}]}, "seconds is -1; it must be a positive number"),
        ({"tests": [{"input": "1", "output": "1", "testtype": "functional"}]}, "the row has no `fn_name`"),
        (
            {"tests": [{"input": "x", "output": "1", "testtype": "functional"}], "fn_name": "f"},
            "arguments and result must be JSON",
        ),
        ({"tests": {"inputs": ["1"], "outputs": []}}, "not as many outputs"),
        ({"tests": {"inputs": ["1"], "outputs": ["1"], "fn_name": "f"}}, r"inputs\[0\] is no list of arguments of f"),
        ({"tests": "{"}, "it has a text that is not JSON"),
        ({"tests": None}, "has no list of `tests`"),
    ],
)
def test_a_row_that_nobody_can_solve_is_refused_with_its_line_before_the_start(
    tmp_path: Path, row: dict[str, Any], told: str
) -> None:
    good = {"prompt": "a", "tests": ["assert True"], "fn_name": None}
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(
            json.dumps({**good, "prompt": str(i), **r}) + "\n" for i, r in enumerate([good | {"prompt": "0"}, row, {}])
        )
    )
    prompts = load_prompts(Data(train=str(file)), "train", make_tokenizer("a"), lambda text: None)
    scorer = Scorer([RewardSpec("rlkit.rewards.code:passed")])
    scorer.check(list(prompts[0].columns))
    with pytest.raises(DataError, match=rf"rows.jsonl:2: reward 'passed': .*{told}.*Mend or remove the row"):
        scorer.check_rows(prompts)
    scorer.check_rows(prompts[:1])
    scorer.close()


def test_it_is_a_reward_like_others() -> None:
    scorer = Scorer([RewardSpec("rlkit.rewards.code:passed")])
    scorer.check(["tests"])
    r = Rollout.given(Prompt("p", (3,), "", columns={"tests": ["assert add(1, 2) == 3"]}), [4], text=ADD)
    scorer.score([r])
    scorer.close()
    assert r.parts == {"passed/share": 1.0, "passed/all": 1.0} and r.reward == 2.0

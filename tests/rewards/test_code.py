"""Code against its tests."""

from __future__ import annotations

import pytest

from rlkit.errors import RewardError
from rlkit.rewards import RewardSpec, Scorer
from rlkit.rewards.code import passed
from rlkit.types import Prompt, Rollout

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("closed_off")]

ADD = "I would write:\n```python\ndef add(a, b):\n    return a + b\n```\n"
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


@pytest.mark.parametrize("tests", [[], "assert True", [3]])
def test_a_row_without_tests_is_told(tests: object) -> None:
    with pytest.raises(RewardError, match=r"no list of `tests`|a test is Python text"):
        passed(ADD, tests)  # type: ignore[arg-type]


def test_it_is_a_reward_like_others() -> None:
    scorer = Scorer([RewardSpec("rlkit.rewards.code:passed")])
    scorer.check(["tests"])
    r = Rollout.given(Prompt("p", (3,), "", columns={"tests": ["assert add(1, 2) == 3"]}), [4], text=ADD)
    scorer.score([r])
    scorer.close()
    assert r.parts == {"passed/share": 1.0, "passed/all": 1.0} and r.reward == 2.0

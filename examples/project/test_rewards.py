"""What the rewards of this project say of responses that one knows.   python -m pytest"""

from pathlib import Path

from rewards import in_order

import rlkit as rk


def test_a_right_answer_gets_all_and_a_wrong_one_nothing() -> None:
    assert sum(in_order("123", "123").values()) == 1
    assert sum(in_order("", "123").values()) == 0


def test_digits_in_their_places_count_half() -> None:
    assert in_order("132", "123") == {"places": 0.5 / 3, "exact": 0.0}
    assert in_order("1234", "123")["exact"] == 0


def test_the_configuration_is_right() -> None:
    assert rk.load(Path(__file__).parent / "train.yaml").steps > 0

"""A limit of responses that grows with the steps while there is entropy."""

from __future__ import annotations

import pytest

from rlkit.rollout.lengths import Lengths, LengthState


def test_the_response_limit_grows_while_there_is_entropy() -> None:
    state, seen = LengthState(Lengths(limits=(8, 16, 32), every=2)), []
    for step in range(1, 7):
        seen.append(state.limit)
        state.observe(step, 1.0)
    assert seen == [8, 8, 16, 16, 32, 32]


def test_the_response_limit_stops_for_good_when_entropy_is_gone() -> None:
    state = LengthState(Lengths(limits=(8, 16), every=4, min_entropy=0.5))
    for step in range(1, 30):
        state.observe(step, 0.4 if step < 9 else 3.0)
    assert state.limit == 8 and state.stopped
    again = LengthState(state.spec)
    again.load_state_dict(state.state_dict())
    assert again.stopped and again.metrics()["length/limit"] == 8
    with pytest.raises(ValueError, match="ascending"):
        Lengths(limits=(16, 8))

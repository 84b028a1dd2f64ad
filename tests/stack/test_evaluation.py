"""`rlkit eval` on several engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rlkit.cli import main
from rlkit.cluster.ray import check_resources
from rlkit.evaluation.samples import read_samples
from rlkit.run import Cluster


def test_two_engines_on_ray_draw_what_one_draws(
    small: dict[str, Any], tiny: Path, tmp_path: Path, ray_session: None
) -> None:
    small |= {"rewards": [str(Path("tests/rewards/examples.py").absolute()) + ":often"], "cluster": {"cpus": 0.3}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(small))
    for name, extra in (("one", []), ("two", ["--engines", "2"])):
        assert (
            main(
                [
                    "eval",
                    str(tmp_path / "c.yaml"),
                    "--model",
                    str(tiny),
                    "-n",
                    "3",
                    "--out",
                    str(tmp_path / name),
                    *extra,
                ]
            )
            == 0
        )
    one, two = (
        {(r["prompt_id"], r["k"]): r["response"] for r in read_samples(tmp_path / name)[1]} for name in ("one", "two")
    )
    assert one == two and len(one) == 12


def test_evaluation_needs_no_room_for_learners() -> None:
    cluster = Cluster(engines=4, gpus=1.0)
    check_resources(cluster, {"CPU": 8.0, "GPU": 4.0}, learners=0)
    with pytest.raises(ValueError, match="need 5 GPUs"):
        check_resources(cluster, {"CPU": 8.0, "GPU": 4.0})

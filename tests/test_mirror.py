"""A test stands where its module stands: ``tests/ROOM/test_x.py`` is about ``rlkit/ROOM/x.py``. The root has what is about the whole house."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ASIDE = {  # tests of a room, and what of it they are about
    "commands/test_functions.py": "that each command is a function with a typed result",
    "learner/test_dropout.py": "that no pass has any",
    "model/test_families.py": "families of models by every property, in a table",
    "model/test_probes.py": "what is measured about a model before it is trained",
    "objective/test_ground_truth.py": "training to optima that are known in closed form",
    "objective/test_preference_equations.py": "every loss of pairs against its equation, response by response",
    "objective/test_preference_optima.py": "where losses of pairs lead, by enumeration",
    "objective/test_published.py": "numbers of papers and of released code",
    "rewards/test_hostile.py": "rewards that hang, die, print and grow",
    "rollout/test_batches.py": "what the collector makes a batch of",
}


def test_tests_of_a_room_mirror_its_modules() -> None:
    rooms = [p for p in (ROOT / "tests").glob("*/test_*.py") if p.parent.name != "stack"]
    there = {p.relative_to(ROOT / "tests").as_posix() for p in rooms}
    lonely = {t for t in there if not (ROOT / "rlkit" / t.replace("/test_", "/")).exists()}
    assert lonely - set(ASIDE) == set(), "name it like a module of its room, or say in ASIDE what it is about"
    assert set(ASIDE) <= lonely, "one of ASIDE is gone, or has a module now"


def test_rooms_of_tests_are_rooms() -> None:
    rooms = {p.parent.name for p in (ROOT / "tests").glob("*/__init__.py")} - {"stack"}
    assert rooms <= {p.parent.name for p in (ROOT / "rlkit").glob("*/__init__.py")}

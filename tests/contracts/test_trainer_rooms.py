"""The trainer's folders, and which of them may import which."""

from __future__ import annotations

import pytest
from tests.contracts.test_layout import ROOT, imports

TRAINER = ROOT / "trainer" / "guerdon" / "trainer"

SHARED = {"common", "common.data", "common.measuring", "common.models", "common.services"}
ROOMS: dict[str, set[str]] = {
    "common": set(),
    "common.data": {"common", "common.measuring"},
    "common.services": {"common", "common.data"},
    "common.measuring": {"common", "common.services"},
    "common.models": {"common", "common.measuring", "common.services"},
    "common.trl": {"common", "common.data", "common.measuring", "common.models"},
    "demo_data": set(),
    "reward": {*SHARED, "common.trl"},
    "fine_tune": {*SHARED, "common.trl"},
    "preference_data": SHARED,
    "evaluate": {*SHARED, "common.trl"},
    "compare": {*SHARED, "evaluate"},
    "rl": {*SHARED, "rl.learner", "rl.report", "rl.rollout"},
    "rl.rollout": {"common", "common.services", "rl"},
    "rl.learner": {*SHARED, "rl"},
    "rl.report": {*SHARED, "rl"},
    "rl.rft": {*SHARED, "common.trl", "rl", "rl.learner", "rl.report"},
    "rl.tasks": {"demo_data"},
}
"""For each folder, those whose modules it may import. Deeper folders belong to these."""


def room_of(module: str) -> str:
    """The folder that a module of the trainer belongs to."""
    inside = module.removeprefix("guerdon.trainer.")
    return max((room for room in ROOMS if f"{inside}.".startswith(f"{room}.")), key=len)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    folder = TRAINER.joinpath(*room.split("."))
    paths = [path for path in folder.rglob("*.py") if room_of(_name(path)) == room]
    assert paths
    for path in paths:
        for name in imports(path):
            if name.startswith("guerdon.trainer."):
                assert room_of(name) in {room, *ROOMS[room]}, f"{path} imports {name}"


def test_the_trainer_is_its_commands_and_rooms() -> None:
    assert {path.name for path in TRAINER.glob("*.py")} == {"__init__.py", "cli.py"}
    rooms = {path.name for path in TRAINER.iterdir() if any(path.glob("*.py"))}
    assert rooms == {room for room in ROOMS if "." not in room}


def _name(path: object) -> str:
    relative = str(path).removeprefix(f"{TRAINER.parents[1]}/").removesuffix(".py")
    return relative.removesuffix("/__init__").replace("/", ".")

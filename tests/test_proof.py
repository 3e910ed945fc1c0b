"""A short proof, in which fewer die; ``make proof`` is the long one. And that it sees what is not
right.
"""

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest

from handler.images.s3 import Source
from tests import proof
from tests.proof import GONE, Item, Proof, newest

RED, BLUE, TEXT = Source("photos", "red"), Source("photos", "blue", "v2"), Source("photos", "text")
REMOVED, SPOILED = Source("photos", "removed"), Source("photos", "spoiled")


def test_a_hundred_objects_through_every_engine(model_dir: Path, tmp_path: Path) -> None:
    result = proof.run(model_dir, tmp_path, 120, seed=(seed := random.randrange(2**32)))
    print(f"seed {seed}\n{result}")
    assert not [
        wrong for wrong in result.wrong if "memory" not in wrong
    ]  # too few requests to judge it
    assert {item.code for item in result.items} == {code for _, code in proof.BAD.values()} | {""}
    drawn = {item.source.key.rstrip("0123456789") for item in result.items}
    assert drawn == {*proof.BAD, *proof.CHANGES, *proof.GOOD}


@pytest.fixture
def sound() -> Proof:
    """What a run without fault leaves."""
    return Proof(
        items=[
            *(
                Item(RED, 0),
                Item(BLUE, 1),
                Item(TEXT, None, "not_an_image"),
                Item(REMOVED, None, "", (GONE,)),
            ),
            Item(SPOILED, None, "not_an_image", (proof.TEXT,)),
        ],
        named=[str(TEXT), str(SPOILED), str(SPOILED)],
        vectors=[(str(RED), np.eye(2, 512)[0]), (str(BLUE), np.eye(2, 512)[1])],
        codes={str(TEXT): {"not_an_image"}, str(SPOILED): {"not_an_image"}},
        expected=np.eye(2, 512),
        kills=0,
        memory=500,
        memory_growth=1.0,
    )


def test_a_sound_run_is_found_sound(sound: Proof) -> None:
    assert sound.wrong == []


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"vectors": [(str(RED), np.eye(2, 512)[0])]}, "v2@s3://photos/blue: 0 vectors"),
        (
            {"vectors": [(str(s), np.eye(2, 512)[i]) for i, s in enumerate([RED, BLUE])] * 2},
            "red: 2 vectors",
        ),
        ({"vectors": [(str(s), np.eye(2, 512)[0]) for s in (RED, BLUE)]}, "blue: not its vector"),
        ({"named": []}, "text: 0 vectors, named as failed 0 times"),
        ({"named": [str(TEXT)] * 2}, "text: 0 vectors, named as failed 2 times"),
        ({"named": [str(TEXT)]}, "spoiled: 0 vectors, named as failed 0 times"),
        (
            {"named": [str(TEXT), str(SPOILED), str(REMOVED)]},
            "removed: 0 vectors, named as failed 1 times",
        ),
        (
            {"vectors": [(str(REMOVED), np.eye(2, 512)[0])]},
            "removed: 1 vectors, named as failed 0 times",
        ),
        ({"named": [str(TEXT), str(RED)]}, "red: 1 vectors, named as failed 1 times"),
        ({"named": [str(TEXT), "s3://photos/other"]}, "other: nobody asked for it"),
        ({"codes": {str(TEXT): {"truncated_image"}}}, "text: not_an_image is not in the log"),
        ({"memory_growth": 1.2}, "memory grew by a factor of 1.200"),
    ],
)
def test_what_is_not_right_is_found(sound: Proof, change: dict[str, object], wrong: str) -> None:
    assert wrong in str(dataclasses.replace(sound, wrong=[], **change))  # type: ignore[arg-type]


def _file(
    *rows: tuple[str, float], removed: tuple[tuple[str, float], ...] = ()
) -> dict[str, object]:
    return {
        "name": [name for name, _ in rows],
        "read_at": [time for _, time in rows],
        "embedding": [np.full(512, time) for _, time in rows],
        "removed": [name for name, _ in removed],
        "removed_at": [time for _, time in removed],
    }


def test_of_each_name_the_latest_reading_counts_and_doubles_in_one_folder_are_seen() -> None:
    files = {
        "runs/1/a": _file(("red", 1), ("blue", 4), ("text", 2)),
        "runs/2/a": _file(("red", 3)),
        "objects/red": _file(("red", 2)),
        "objects/blue": _file(removed=(("blue", 3),)),
        "objects/text": _file(removed=(("text", 5),)),
    }
    assert {(name, vector[0]) for name, vector in newest(files)} == {("red", 3), ("blue", 4)}
    files["runs/2/b"] = _file(("red", 2.5))
    assert sorted(name for name, _ in newest(files)) == ["blue", "red", "red"]

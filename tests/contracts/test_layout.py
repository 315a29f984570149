"""The three trees share one namespace, and none imports what it must not."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TREES = ("client", "server", "trainer")


def modules(tree: str) -> list[Path]:
    found = sorted((ROOT / tree / "guerdon").rglob("*.py"))
    assert found, f"no modules under {tree}/guerdon"
    return found


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def starts_with(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def test_no_init_hides_the_other_trees() -> None:
    assert not [t for t in TREES if (ROOT / t / "guerdon" / "__init__.py").exists()]


def test_no_two_trees_own_one_path() -> None:
    owner: dict[Path, str] = {}
    for tree in TREES:
        for path in modules(tree):
            relative = path.relative_to(ROOT / tree)
            assert owner.setdefault(relative, tree) == tree, f"{relative} is in two trees"


@pytest.mark.parametrize("tree", ["client", "trainer"])
def test_client_and_trainer_import_no_server(tree: str) -> None:
    servers = [f"guerdon.{p.name}" for p in (ROOT / "server" / "guerdon").iterdir() if p.is_dir()]
    assert "guerdon.reward" in servers
    offenders = {
        (str(path.relative_to(ROOT)), name)
        for path in modules(tree)
        for name in imports(path)
        for server in servers
        if starts_with(name, server)
    }
    assert not offenders


def test_lower_layers_import_no_upper_ones() -> None:
    """Wire → service → scheduler → engine: nobody knows what is above."""
    wire = ("grpc", "fastapi", "starlette", "uvicorn", "guerdon.v1", "google.protobuf")
    reward = ROOT / "server" / "guerdon" / "reward"
    impure = (*wire, "torch", "transformers", "asyncio", "time", "threading", "socket")
    scheduling = sorted((reward / "scheduling").glob("*.py"))
    joins_loop_and_thread = {"dispatcher.py", "worker.py", "accepted.py"}
    pure = [path for path in scheduling if path.name not in joins_loop_and_thread]
    assert len(pure) >= 5
    below = [
        *(
            path
            for name in ("engine", "kinds", "checkpoints")
            for path in (reward / name).glob("*")
        ),
        reward / "encoding.py",
        reward / "text_tokens.py",
    ]
    upper = tuple(
        f"guerdon.reward.{name}" for name in ("wire", "scheduling", "registry", "scoring", "app")
    )
    rules: dict[Path, tuple[str, ...]] = dict.fromkeys(
        scheduling, (*wire, "torch", "transformers", "guerdon.reward.wire")
    )
    rules |= dict.fromkeys(pure, (*impure, "guerdon.reward.wire"))
    rules[reward / "types.py"] = impure
    rules |= {p: (*wire, *upper, "asyncio") for p in below if p.suffix == ".py"}
    for path, packages in rules.items():
        found = {n for n in imports(path) for p in packages if starts_with(n, p)}
        assert not found, f"{path.name} imports {found}"


def test_serving_knows_nothing_of_rewards() -> None:
    for path in (ROOT / "server" / "guerdon" / "serving").rglob("*.py"):
        assert not {n for n in imports(path) if starts_with(n, "guerdon.reward")}, path.name


def test_all_trees_import_together_and_the_client_stays_light() -> None:
    code = (
        "import sys, guerdon.client, guerdon.cli.main, guerdon.data, guerdon.models\n"
        "heavy = {'torch', 'transformers', 'vllm', 'pandas', 'fastapi'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "import guerdon.serving, guerdon.reward, guerdon.trainer\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_generated_stubs_are_those_of_the_protos() -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "protos" / "generate.sh"), "--check"],
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_proto_element_is_commented() -> None:
    """Each service, method, message, field and enum value says what it is."""
    for path in sorted((ROOT / "protos").rglob("*.proto")):
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            text = line.strip()
            starts = ("message ", "service ", "rpc ", "enum ")
            is_field = text.endswith(";") and " = " in text and not text.startswith("//")
            if text.startswith(starts) or (is_field and not text.startswith("syntax")):
                before = lines[number - 1].strip()
                assert before.startswith("//"), f"{path.name}:{number + 1} has no comment: {text}"

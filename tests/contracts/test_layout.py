"""The three trees share one namespace, and none imports what it must not."""

from __future__ import annotations

import ast
import graphlib
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


REWARD = ROOT / "server" / "guerdon" / "reward"
ROOMS: dict[str, set[str]] = {
    "types": set(),
    "fair_shares": set(),
    "engine": {"types"},
    "adapters": {"engine", "types"},
    "checkpoints": {"adapters", "engine", "types"},
    "encoding": {"checkpoints", "types"},
    "kinds": {"checkpoints", "encoding", "engine", "types"},
    "engine_process": {"checkpoints", "encoding", "engine", "kinds", "types"},
    "scheduling": {"fair_shares", "types"},
    "judge": {"encoding", "fair_shares", "types"},
    "models": {"judge", "types"},
    "metrics": set(),
    "counting": {"metrics", "models", "scheduling", "types"},
    "request_limits": set(),
    "scoring": {
        *("counting", "encoding", "fair_shares", "judge", "metrics"),
        *("models", "scheduling", "types"),
    },
    "wire": {"counting", "models", "request_limits", "scoring", "types"},
    "config": {"engine", "request_limits", "scheduling"},
    "app": {
        *("config", "counting", "metrics"),
        *("models", "scheduling", "scoring", "types", "wire"),
    },
    "cli": {"app", "config", "engine_process", "models"},
}
"""For each folder and module of the reward server, those whose modules it may import."""

WIRE = ("grpc", "fastapi", "starlette", "uvicorn", "guerdon.v1", "google.protobuf")
TORCH = ("torch", "transformers")
WAITING = ("asyncio", "time", "threading", "socket")
COMPUTING = ("engine", "adapters", "checkpoints", "encoding", "kinds", "engine_process")
WITHOUT_TORCH = (
    "judge",
    "scheduling",
    "models",
    "scoring",
    "metrics",
    "counting",
)
FOREIGN = {
    **dict.fromkeys(("types", "fair_shares"), (*WIRE, *TORCH, *WAITING)),
    **dict.fromkeys(COMPUTING, (*WIRE, "asyncio")),
    **dict.fromkeys(WITHOUT_TORCH, (*WIRE, "torch")),
}
"""For each folder and module of the reward server, the libraries that it must not import."""

ADAPTER = "guerdon.reward.adapters."
JOIN_LOOP_AND_THREAD = {"announcer.py", "calls.py", "dispatcher.py", "worker.py"}


def test_scheduling_is_pure_but_for_its_loop_and_thread() -> None:
    paths = sorted((REWARD / "scheduling").glob("*.py"))
    pure = [path for path in paths if path.name not in JOIN_LOOP_AND_THREAD]
    assert len(pure) >= 5
    for path in pure:
        found = {n for n in imports(path) for p in (*TORCH, *WAITING) if starts_with(n, p)}
        assert not found, f"{path} imports {found}"


def test_no_module_of_scheduling_writes_private_fields_of_others() -> None:
    for path in sorted((REWARD / "scheduling").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            written = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            if written and node.attr.startswith("_"):
                assert ast.unparse(node.value) == "self", f"{path}:{node.lineno}"


def test_only_the_registry_of_adapters_knows_a_published_model() -> None:
    adapters = REWARD / "adapters"
    known = {path.stem for path in adapters.glob("[a-z]*.py")} - {"base", "gating", "registry"}
    assert len(known) >= 7
    for path in REWARD.rglob("*.py"):
        if path != adapters / "registry.py":
            named = {each.split(".")[3] for each in imports(path) if each.startswith(ADAPTER)}
            of_others = {n for n in named & known if not n.startswith(path.stem)}
            assert not of_others, f"{path} imports {of_others}"


GATEWAY_ROOMS: dict[str, set[str]] = {
    "types": set(),
    "strategies": {"types"},
    "plans": {"strategies", "types"},
    "config": {"plans"},
    "spending": {"config"},
    "metrics": {"types"},
    "answering": {"metrics", "spending", "strategies", "types"},
    "pass_through": {"metrics", "spending", "types"},
    "upstream": {"types"},
    "wire": {"answering", "plans", "config", "pass_through", "strategies", "types"},
    "app": {
        *("answering", "config", "metrics", "pass_through", "spending"),
        *("upstream", "wire"),
    },
    "cli": {"app", "config"},
}
"""For each folder and module of the gateway, those whose modules it may import."""
HTTP_CLIENT = ("httpx", "guerdon.client", "guerdon.http_services")
GATEWAY_FOREIGN = {
    **dict.fromkeys(("types", "strategies", "plans", "spending"), (*WIRE, *HTTP_CLIENT)),
    **dict.fromkeys(("answering", "pass_through"), (*WIRE, *HTTP_CLIENT)),
    "upstream": ("fastapi", "starlette", "uvicorn", "guerdon.v1"),
    "wire": ("grpc", *HTTP_CLIENT),
}
"""For each folder and module of the gateway, the libraries that it must not import."""


SAMPLER_ROOMS: dict[str, set[str]] = {
    "types": set(),
    "request_limits": set(),
    "shared_path": set(),
    "admission": set(),
    "metrics": set(),
    "engine": {"types"},
    "tokenizer": {"types"},
    "checks": {"request_limits", "types"},
    "sampling": {"admission", "checks", "metrics", "request_limits", "tokenizer", "types"},
    "wire": {"checks", "metrics", "request_limits", "sampling", "shared_path", "types"},
    "config": {"engine", "request_limits"},
    "loading": {"config", "engine", "tokenizer", "types"},
    "app": {"config", "metrics", "sampling", "tokenizer", "types", "wire"},
    "cli": {"app", "config", "loading"},
}
"""For each folder and module of the sampler, those whose modules it may import."""
SAMPLER_FOREIGN = {
    **dict.fromkeys(("types", "admission"), (*WIRE, *TORCH, "vllm", *WAITING)),
    **dict.fromkeys(("checks", "sampling", "shared_path"), (*WIRE, *TORCH, "vllm")),
    "engine": WIRE,
    "tokenizer": (*WIRE, "torch", "vllm"),
    **dict.fromkeys(("wire", "app", "cli", "config"), (*TORCH, "vllm")),
}
"""For each folder and module of the sampler, the libraries that it must not import."""

SERVING_ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "logs": set(),
    "threads": set(),
    "credentials": set(),
    "config": {"credentials"},
    "lifecycle": {"errors"},
    "prompts": {"errors"},
    "status": {"errors"},
    "access": {"config", "credentials", "errors", "logs", "status"},
    "waiting": {"access"},
    "calls": {"access", "errors", "lifecycle", "status", "waiting"},
    "metrics": {"lifecycle"},
    "wire": {"access", "errors", "prompts", "status", "waiting"},
    "http": {
        *("access", "calls", "credentials", "errors", "lifecycle"),
        *("logs", "metrics", "prompts", "status", "waiting"),
    },
    "openai": {"access", "calls", "errors", "http", "prompts", "status"},
    "process": {
        *("access", "config", "credentials", "errors", "http"),
        *("lifecycle", "metrics", "wire"),
    },
    "cli": set(),
    "__main__": {"cli"},
}
"""For each folder and module of what services share, those whose modules it may import."""
SERVING_FOREIGN = {
    **dict.fromkeys(("errors", "waiting"), (*WIRE, *WAITING)),
    **dict.fromkeys(("calls", "config", "lifecycle", "logs", "metrics", "prompts"), WIRE),
}
"""For each folder and module of what services share, the libraries that it must not import."""

SERVERS = {
    "gateway": (GATEWAY_ROOMS, GATEWAY_FOREIGN, (*TORCH, "vllm")),
    "reward": (ROOMS, FOREIGN, ("vllm",)),
    "sampler": (SAMPLER_ROOMS, SAMPLER_FOREIGN, ()),
    "serving": (SERVING_ROOMS, SERVING_FOREIGN, (*TORCH, "vllm")),
}
"""For each package its rooms, and the libraries that some of them and all must not import."""


@pytest.mark.parametrize("server", SERVERS)
def test_rooms_import_only_those_below_and_no_other_service(server: str) -> None:
    rooms, foreign, banned = SERVERS[server]
    banned += tuple(f"guerdon.{name}" for name in SERVERS if name not in (server, "serving"))
    graphlib.TopologicalSorter(rooms).prepare()  # raises where they run in a circle
    folder = ROOT / "server" / "guerdon" / server
    paths = [path for path in folder.rglob("*.py") if path != folder / "__init__.py"]
    room_of = {path: path.relative_to(folder).parts[0].removesuffix(".py") for path in paths}
    assert set(room_of.values()) == rooms.keys()
    for path, room in room_of.items():
        names = imports(path)
        others = {name.split(".")[2] for name in names if name.startswith(f"guerdon.{server}.")}
        assert others <= {room, *rooms[room]}, path
        bad = {n for n in names for p in (*banned, *foreign.get(room, ())) if starts_with(n, p)}
        assert not bad, f"{path} imports {bad}"


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
    """Each service, method, message, field and enum value of ours says what it is."""
    ours = (path for path in (ROOT / "protos").rglob("*.proto") if "google" not in path.parts)
    for path in sorted(ours):
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            text = line.strip()
            starts = ("message ", "service ", "rpc ", "enum ")
            is_field = text.endswith(";") and " = " in text and not text.startswith("//")
            if text.startswith(starts) or (is_field and not text.startswith(("syntax", "option"))):
                before = lines[number - 1].strip()
                assert before.startswith("//"), f"{path.name}:{number + 1} has no comment: {text}"

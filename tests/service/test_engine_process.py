"""The engine's process behind a real server: what it scores, and what its end costs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.engine.implicit import implicit_folder
from tests.support import hub, load
from tests.support.server import RunningServer, running_server
from tests.support.tiny import STEP, tiny_checkpoint

from guerdon.client import AdminClient, Item, RewardClient
from guerdon.client.config import Priority
from guerdon.client.types import Score
from guerdon.models import Manifest
from guerdon.reward.encoding.comparisons import scores_of_candidates
from guerdon.reward.engine.settings import EngineSettings
from guerdon.reward.kinds import load_model
from guerdon.reward.types import ResponseScore, ScoreItem, Truncation

pytestmark = pytest.mark.slow

PROMPT = "Which one is right?"
ANSWERS = (f"The first one.{STEP}", f"I think{STEP}the second one.{STEP}")
WAIT = 300.0
"""Seconds that a slow machine may take for what comes of itself."""


def engine_pid(server: RunningServer, engine: int = 0) -> int:
    """The process that computes, as the log names it."""
    named = rf"engine {engine} (?:is|was started again as) process (\d+)"
    return int(re.findall(named, server.log())[-1])


def children(pid: int) -> list[int]:
    """A process's children and theirs."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [each for child in map(int, found) for each in (child, *children(child))]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has reaped yet has, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@contextmanager
def calls_in(threads: int, work: Callable[[], object]) -> Iterator[list[BaseException]]:
    """Repeat some work in so many threads; what it raised."""
    ended, errors = threading.Event(), list[BaseException]()

    def repeat() -> None:
        while not ended.is_set():
            try:
                work()
            except BaseException as error:
                errors.append(error)

    running = [threading.Thread(target=repeat) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield errors
    finally:
        ended.set()
        for thread in running:
            thread.join()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "llama", "llama")


def test_what_is_imported_before_engines_are_forked_does_not_touch_a_gpu() -> None:
    """A process in which CUDA was started can't be forked."""
    code = (
        "import torch\n"
        "def touched(*_): raise AssertionError('CUDA is asked for at import')\n"
        "for name in ('is_available', 'device_count', 'init', '_lazy_init', 'current_device'):\n"
        "    setattr(torch.cuda, name, touched)\n"
        "import guerdon.reward.kinds, guerdon.reward.app\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=WAIT)


def test_every_kind_scores_as_it_does_in_one_process(tmp_path: Path) -> None:
    ensemble = tmp_path / "ensemble"
    for seed in range(2):
        Manifest(mean=float(seed), std=1.0).write(
            tiny_checkpoint(ensemble / f"member-{seed}", "llama", seed=seed)
        )
    Manifest(kind="ensemble", members=("member-0", "member-1"), aggregation="min").write(ensemble)
    attributes = tiny_checkpoint(tmp_path / "attributes", "qwen2", num_labels=2)
    Manifest(kind="attributes", attributes={"a": 1.0, "b": -0.1}).write(attributes)
    process = tiny_checkpoint(tmp_path / "process", "qwen2", token_classification=True)
    Manifest(kind="process", step_marker=STEP, step_aggregation="min").write(process)
    folders = {
        "sequence": tiny_checkpoint(tmp_path / "sequence", "llama"),
        "padded": tiny_checkpoint(tmp_path / "padded", "deberta-v2"),
        "attributes": attributes,
        "process": process,
        "ensemble": ensemble,
        "implicit": implicit_folder(tmp_path / "implicit", "llama"),
        "pairwise": hub.pairrm(tmp_path / "pairwise"),
    }
    with running_server(folders, dtype="float32") as server, RewardClient(server.address) as client:
        assert len(children(server.process.pid)) == 2, "one engine, and what starts it"
        assert {m.name: m.step_marker for m in client.list_models() if m.step_marker} == {
            "process": STEP
        }
        for name, folder in folders.items():
            model = load_model(folder, name=name, settings=EngineSettings(dtype="float32"))
            encoded = model.encode(ScoreItem(PROMPT, ANSWERS), Truncation.REJECT)
            wanted: list[ResponseScore] = model.score([encoded]).items[0]
            if name == "pairwise":
                wanted = scores_of_candidates(encoded, wanted)
                ranking = client.rank(name, PROMPT, ANSWERS).ranking
                found = [each.score for each in sorted(ranking, key=lambda each: each.index)]
            else:
                found = list(client.score_one(name, PROMPT, ANSWERS).scores)
            for one, other in zip(found, wanted, strict=True):
                assert numbers(one) == pytest.approx(numbers(other), abs=1e-5), name


def numbers(score: Score | ResponseScore) -> list[float]:
    """All that a model says of a response."""
    attributes = score.attributes.values() if isinstance(score, Score) else score.attributes
    steps = [step.score for step in score.steps]
    return [score.score, *steps, *attributes, *score.members, score.spread or 0.0]


def test_an_engine_that_is_killed_is_started_anew_and_no_call_fails(llama: Path) -> None:
    with running_server({"m": llama}) as server, RewardClient(server.address) as client:
        wanted = client.score_one("m", PROMPT, ANSWERS).scores

        def ask() -> None:
            found = client.score_one("m", PROMPT, ANSWERS, timeout=WAIT).scores
            assert [s.score for s in found] == pytest.approx([s.score for s in wanted], abs=1e-5)
            answered.append(None)

        answered: list[None] = []
        with calls_in(8, ask) as errors:
            for number, sent in enumerate((signal.SIGKILL, signal.SIGSEGV), start=1):
                until(lambda: len(answered) > 20)
                os.kill(engine_pid(server), sent)
                until(lambda n=number: server.log().count("was started again") == n)  # type: ignore[misc]
                answered.clear()
            until(lambda: len(answered) > 20)
        assert not errors
        samples = load.metrics(server.url)
        assert samples['guerdon_engine_restarts_total{engine="0"}'] == 2
        assert samples['guerdon_engine_up{engine="0"}'] == samples["guerdon_ready"] == 1
        assert load.total(samples, "guerdon_batch_failures_total", 'reason="engine_lost"') >= 1
        assert "was ended by SIGKILL" in server.log()
        assert "was ended by SIGSEGV" in server.log()
        assert server.stop() == 0


def test_online_calls_go_between_the_layers_of_bulk_work_also_where_the_engine_is_killed(
    llama: Path,
) -> None:
    with running_server({"m": llama}) as server, RewardClient(server.address) as client:
        items = [Item(f"{PROMPT} {number}", ANSWERS) for number in range(40)]
        wanted = client.score("m", items).scores

        def ask(priority: Priority, count: int) -> None:
            found = client.score("m", items[:count], priority=priority, timeout=WAIT).scores
            for values, known in zip(found, wanted[:count], strict=True):
                assert values == pytest.approx(known, abs=1e-5)

        def preempting() -> float:
            return load.total(load.metrics(server.url), "guerdon_preempting_batches_total")

        with (
            calls_in(3, lambda: ask("batch", 40)) as bulk_errors,
            calls_in(1, lambda: ask("online", 1)) as errors,
        ):
            until(lambda: preempting() > 10)
            os.kill(engine_pid(server), signal.SIGKILL)
            until(lambda: "was started again" in server.log())
            before = preempting()
            until(lambda: preempting() > before + 10)
        assert not errors + bulk_errors
        assert server.stop() == 0


def test_an_engine_that_ends_while_nobody_asks_is_back_before_the_next_call(llama: Path) -> None:
    with running_server({"m": llama}) as server, RewardClient(server.address) as client:
        os.kill(engine_pid(server), signal.SIGKILL)
        until(lambda: "was started again" in server.log())
        client.score_one("m", PROMPT, ANSWERS, timeout=WAIT)
        assert load.total(load.metrics(server.url), "guerdon_batch_failures_total") == 0


def test_of_two_engines_one_may_end_while_models_change(llama: Path, tmp_path: Path) -> None:
    other = tiny_checkpoint(tmp_path / "other", "llama", seed=1)
    with (
        running_server({"m": llama}, devices=2, load_from="*") as server,
        RewardClient(server.address) as client,
        AdminClient(server.admin_address) as admin,
    ):
        before = client.score_one("m", PROMPT, ANSWERS)
        wanted = {client.get_model("m").revision: [s.score for s in before.scores or ()]}
        seen: list[str] = []

        def ask() -> None:
            results = client.score(
                "m", [Item(PROMPT, ANSWERS), Item(PROMPT, ANSWERS)], timeout=WAIT
            )
            for item in results.items:
                scores = [s.score for s in item.scores or ()]
                known = wanted.setdefault(results.info.revision, scores)
                assert scores == pytest.approx(known, abs=1e-5)
            seen.append(results.info.revision)

        with calls_in(8, ask) as errors:
            until(lambda: len(seen) > 20)
            os.kill(engine_pid(server, 1), signal.SIGKILL)
            assert load.metrics(server.url)["guerdon_ready"] == 1
            until(lambda: "engine 1 was started again" in server.log())
            admin.load_model("m", str(other), promote=True, timeout=WAIT)
            count = len(seen)
            until(lambda: len(seen) > count + 20)
            os.kill(engine_pid(server, 0), signal.SIGKILL)
            until(lambda: "engine 0 was started again" in server.log())
            (old,) = admin.unload_model("m", next(iter(wanted)), timeout=WAIT)
            count = len(seen)
            until(lambda: len(seen) > count + 20)
        assert not errors
        assert len(wanted) == len({tuple(scores) for scores in wanted.values()}) == 2
        assert old not in seen[-1:]
        samples = load.metrics(server.url)
        for engine in range(2):
            assert samples[f'guerdon_engine_restarts_total{{engine="{engine}"}}'] == 1
            assert samples[f'guerdon_engine_busy_seconds_total{{engine="{engine}"}}'] > 0


def test_a_batch_that_hangs_costs_its_engine(llama: Path, tmp_path: Path) -> None:
    settings = tmp_path / "server.toml"
    settings.write_text("hang_seconds = 2")
    with (
        running_server({"m": llama}, config=settings) as server,
        RewardClient(server.address) as client,
    ):
        client.score_one("m", PROMPT, ANSWERS)  # the first batch may take ten times as long
        os.kill(engine_pid(server), signal.SIGSTOP)
        client.score_one("m", PROMPT, ANSWERS, timeout=WAIT)
        assert "taken far longer than it should" in server.log()
        assert "was started again" in server.log()


def test_a_server_that_is_killed_leaves_no_process_behind(llama: Path) -> None:
    with running_server({"m": llama}) as server:
        family = children(server.process.pid)
        assert engine_pid(server) in family
        os.kill(engine_pid(server), signal.SIGSTOP)  # not even one that hangs
        server.kill()
        until(lambda: all(map(gone, family)))


def test_a_model_that_changed_on_disk_is_not_served_in_place_of_the_one_before(
    tmp_path: Path,
) -> None:
    folder = tiny_checkpoint(tmp_path / "m", "llama")
    with running_server({"m": folder}) as server:
        tiny_checkpoint(folder, "llama", seed=1)
        os.kill(engine_pid(server), signal.SIGKILL)
        assert server.process.wait(WAIT) == 1
        assert "is not what it was when m was loaded" in server.log()


def test_a_load_leaves_no_thread_that_helps_the_one_that_computes(tmp_path: Path) -> None:
    """With more of them than cores, all would sleep after each operation."""
    folders = [
        tiny_checkpoint(tmp_path / str(n), "llama", seed=n, max_positions=1024) for n in range(2)
    ]
    two = {"OMP_NUM_THREADS": "2"}
    with (
        running_server({"m": folders[0]}, environment=two, forked=False, load_from="*") as server,
        RewardClient(server.address) as client,
        AdminClient(server.admin_address) as admin,
    ):

        def threads() -> int:
            client.score_one("m", PROMPT, [answer * 5 for answer in ANSWERS])
            return len(list(Path(f"/proc/{engine_pid(server)}/task").iterdir()))

        before = threads()
        admin.load_model("m", str(folders[1]), promote=True, timeout=WAIT)
        until(lambda: threads() == before + 2)  # those that wait for the model's batches

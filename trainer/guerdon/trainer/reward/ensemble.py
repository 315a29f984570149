"""Several reward models that differ in their seed, served as one.

Conservative aggregation of an ensemble makes over-optimising a reward model harder (Coste et al.
2023, arXiv:2310.02743), and where the members part, their score is worth less. A pairwise loss
leaves each member its own zero: as the server does, a member's scores lose what its mean over the
training set is above the members' average before they are combined.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rich.console import Console

from guerdon.models import Manifest, template_hash, weights_hash
from guerdon.trainer.common.errors import TrainingError
from guerdon.trainer.common.measuring import measures
from guerdon.trainer.common.measuring.measures import Floats, Ints
from guerdon.trainer.common.models.transformers_logging import quiet
from guerdon.trainer.common.process_group import SINGLE_PROCESS, ProcessGroup
from guerdon.trainer.common.report import say
from guerdon.trainer.common.run_folder import MEMBERS, SUMMARY
from guerdon.trainer.common.run_state import package_versions, rounded, timed_phase
from guerdon.trainer.common.trl.recipe import PACKAGES, check_shares, fine_tune
from guerdon.trainer.reward.folder import EnsembleFolder
from guerdon.trainer.reward.model import load_base
from guerdon.trainer.reward.objectives.preference import PreferenceTask, group_measures
from guerdon.trainer.reward.objectives.task import RewardTask
from guerdon.trainer.reward.scoring import PairScores

_Scores = npt.NDArray[np.float64]
"""Scores of every answer by every member, shape [M, N]."""

AGGREGATE: Final[dict[str, Callable[[_Scores, float], Floats]]] = {
    "mean": lambda scores, weight: scores.mean(0),
    "min": lambda scores, weight: scores.min(0),
    "mean_minus_std": lambda scores, weight: scores.mean(0) - weight * scores.std(0),
}
"""The server's aggregations; λ is the weight of the population's standard deviation."""


def train_ensemble(
    task: RewardTask[Any],
    folder: EnsembleFolder,
    console: Console,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> dict[str, Any]:
    """Train the members one after another, and measure them together.

    Members that are whole are kept, one in the middle is gone on with. Arguments and what is
    returned are as for `fine_tune`.

    Raises:
        OutputError: the folder can't be written to.
        TrainingError: a member can't be trained, or two came out the same.
    """
    assert isinstance(task, PreferenceTask)
    settings, seconds = task.settings, dict[str, float]()
    task.processes = processes
    with processes.fail_together():
        check_shares(settings, processes)
        folder.begin()
        folder.check_data(folder.path / MEMBERS, task.hashes)
    tasks = [_member(task, folder, i) for i in range(settings.ensemble)]
    for i, member in enumerate(tasks):
        with processes.fail_together():
            place = folder.member(member.settings)
        seed = f"member {i} (seed {member.settings.seed})"
        if processes.all_gather(place.finished)[0]:
            say(console, f"{seed} is trained already")
            continue
        say(console, seed)
        with timed_phase(seconds, f"member {i}"):
            fine_tune(member, place, console, processes)
    folders = [Path(member.settings.output) for member in tasks]
    with timed_phase(seconds, "evaluate together"), quiet():
        held_out, train = _measured(task, folders)
    summary: dict[str, Any] = {}
    with processes.fail_together():
        if processes.main:
            summary = _finish(task, folder, folders, held_out, train, seconds)
    return summary


def _measured(
    task: PreferenceTask, folders: Sequence[Path]
) -> tuple[list[PairScores], list[Floats]]:
    """Each member's scores of the held-out pairs, and of those that statistics are taken over."""
    processes, dtype = task.processes, task.settings.saved_dtype
    held_out, train = [], []
    with processes.fail_together():
        if processes.main:  # it reads all the weights
            _check_different(folders)
    for path in folders:
        with processes.fail_together():
            model = load_base(path, task.tokenizer, grow=False)
            task.share = task.decide_sharing(model)
        task.settle()
        model = model.to(processes.device())
        with processes.one_error():
            held_out.append(task.measure(model, dtype))
            train.append(task.train_scores(model, dtype, task.statistics_places()))
    return held_out, train


def _finish(
    task: PreferenceTask,
    folder: EnsembleFolder,
    folders: Sequence[Path],
    held_out: Sequence[PairScores],
    train: Sequence[Floats],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Write all that the run leaves; the summary."""
    settings = task.settings
    offsets = _offsets(folders)
    held_out = [
        PairScores(scores.chosen - offset, scores.rejected - offset)
        for scores, offset in zip(held_out, offsets, strict=True)
    ]
    together = _combined(held_out, settings.aggregation, settings.std_weight)
    if settings.plots:
        with timed_phase(seconds, "plots"):
            task.draw(folder.plots, [], together)

    parts = [json.loads((path / SUMMARY).read_text("utf-8")) for path in folders]
    scores = AGGREGATE[settings.aggregation](
        np.stack(train) - offsets[:, None], settings.std_weight
    )
    summary = {
        "objective": settings.objective,
        **task.before(None),
        **task.summarise(together),
        "ensemble": _findings(held_out, offsets, parts, settings.std_weight, task.prompts)
        | {"aggregation": settings.aggregation},
        "data": task.counts(),
        "training_set_scores": {
            "mean": float(scores.mean()),
            "std": float(scores.std()),
            "responses": len(scores),
        },
        "steps": sum(part["steps"] for part in parts),
        "seed": settings.seed,
        "parameters": sum(part["parameters"] for part in parts),
        "processes": task.processes.world_size,
        "versions": package_versions(*PACKAGES),
        "seconds": rounded(seconds),
    }
    folder.publish(_manifest(task, folders, summary), summary)
    return summary


def _member(task: PreferenceTask, folder: EnsembleFolder, place: int) -> PreferenceTask:
    """The task of one member: the same data with a seed of its own."""
    settings = replace(
        task.settings,
        output=str(folder.path / MEMBERS / str(place)),
        seed=task.settings.seed + place,
        ensemble=0,
        aggregation="mean",
        std_weight=1.0,
    )
    return PreferenceTask(replace(task.inputs, settings=settings))


def _offsets(folders: Sequence[Path]) -> Floats:
    """What each member's mean over the training set is above the members' average, shape [M]."""
    manifests = [Manifest.read(path) for path in folders]
    means = np.array([manifest.mean for manifest in manifests if manifest is not None], np.float64)
    return np.asarray(means - means.mean())


def _check_different(folders: Sequence[Path]) -> None:
    """Two equal models would look like agreement, and the server refuses them."""
    seen: dict[str, Path] = {}
    for path in folders:
        other = seen.setdefault(weights_hash(path), path)
        if other is not path:
            raise TrainingError(
                f"the members {other.name} and {path.name} came out the same: with this base and "
                "data the seed changes nothing"
            )


def _combined(scores: Sequence[PairScores], aggregation: str, weight: float) -> PairScores:
    combine = AGGREGATE[aggregation]
    return PairScores(
        combine(np.stack([s.chosen for s in scores]), weight),
        combine(np.stack([s.rejected for s in scores]), weight),
    )


def _findings(
    scores: Sequence[PairScores],
    offsets: Floats,
    parts: Sequence[dict[str, Any]],
    weight: float,
    prompts: Ints,
) -> dict[str, Any]:
    """What the members say alone, together, and of each other.

    Args:
        scores: each member's, less its offset.
        offsets: shape [M].
        parts: the members' own summaries.
        weight: of the standard deviation.
        prompts: of the held-out pairs; equal numbers are one prompt.
    """
    deltas = np.stack([s.delta for s in scores])
    signs = np.sign(deltas)
    alike = (signs == signs[0]).all(0) & (signs[0] != 0)
    mean = deltas.mean(0)
    both = list(itertools.combinations(range(len(scores)), 2))
    return {
        "members": [
            {
                "seed": part["seed"],
                "mean_score": float(s.all.mean() + offset),
                **group_measures(s.delta, prompts),
            }
            for part, s, offset in zip(parts, scores, offsets, strict=True)
        ],
        "aggregations": {
            name: group_measures(_combined(scores, name, weight).delta, prompts)
            for name in AGGREGATE
        },
        "std_weight": weight,
        "same_order": float(np.mean([(signs[i] == signs[j]).mean() for i, j in both])),
        "delta_correlation": _mean(measures.pearson(deltas[i], deltas[j]) for i, j in both),
        "spread": float(np.stack([s.all for s in scores]).std(0).mean()),
        "unanimous": asdict(measures.accuracy(mean[alike], prompts[alike]))
        if alike.any()
        else None,
        "divided": asdict(measures.accuracy(mean[~alike], prompts[~alike]))
        if not alike.all()
        else None,
    }


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _manifest(task: PreferenceTask, folders: Sequence[Path], summary: dict[str, Any]) -> Manifest:
    statistics = summary["training_set_scores"]
    first = Manifest.read(folders[0])
    assert first is not None
    return Manifest(
        kind="ensemble",
        mean=statistics["mean"],
        std=statistics["std"] or None,
        template_hash=template_hash(task.tokenizer.chat_template),
        base_model=task.settings.base,
        train_data=task.train_described,
        max_tokens=first.max_tokens,
        members=tuple(f"{MEMBERS}/{path.name}" for path in folders),
        aggregation=task.settings.aggregation,
        std_weight=task.settings.std_weight,
        training=task.notes(summary),
    )

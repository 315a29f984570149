"""A run's folder, or an evaluation's, as values. Reads files, changes none.

What is there was written by other programs, perhaps other versions: every number is checked, and
whatever can't be read ends in one sentence that names the file.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guerdon.models import MANIFEST_NAME
from guerdon.trainer.common.errors import DataError
from guerdon.trainer.common.measuring.policy_evaluation import Evaluation
from guerdon.trainer.common.measuring.samples import before_and_after
from guerdon.trainer.common.policy_folder import FINAL, SAMPLES
from guerdon.trainer.common.run_folder import METRICS, SETTINGS, SUMMARY
from guerdon.trainer.common.services.reward_specs import parse_reward, split_weight
from guerdon.trainer.compare.fields import Table, read_json, read_tables
from guerdon.trainer.compare.runs import Point, Run, RunMeasures, ShownAnswer, Terms
from guerdon.trainer.evaluate.policy.baseline import FORMAT
from guerdon.trainer.evaluate.policy.folder import EVALUATION

FOLDER = "evaluation"
"""The folder in a run's that holds the evaluation of its `final/`."""


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in folders, each with a name of its own.

    Raises:
        DataError: one is no run, has not ended, or can't be read; or one is given twice.
    """
    whole = [path.resolve() for path in paths]
    for path, real in zip(paths, whole, strict=True):
        if whole.count(real) > 1:
            raise DataError(f"{path} is given twice")
    return [
        dataclasses.replace(read_run(path), name=name)
        for path, name in zip(paths, names(whole), strict=True)
    ]


def names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        found = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(found)) == len(found):
            return found
    return [str(path) for path in paths]


def read_run(path: Path) -> Run:
    """The run, or the plain evaluation, in a folder.

    Raises:
        DataError: it is none, has not ended, or can't be read.
    """
    if not path.is_dir():
        raise DataError(f"{path} is {'a file' if path.exists() else 'not there'}: give a folder")
    if (path / EVALUATION).exists():
        return _plain_evaluation(path)
    if not (path / SETTINGS).exists():
        if (path / SAMPLES).exists():
            raise DataError(
                f"{path} has {SAMPLES} and no {EVALUATION}: the evaluation hasn't ended"
            )
        raise DataError(f"{path} is neither a run of guerdon train nor one of guerdon eval policy")
    if (path / MANIFEST_NAME).exists():
        raise DataError(f"{path} is a reward model, not a run that trained a policy")
    if not (path / SUMMARY).exists():
        raise DataError(f"{path} has no {SUMMARY}: the run hasn't ended; go on with --resume")
    run = _trained(path)
    if not (path / FOLDER).is_dir():
        return run
    if not (path / FOLDER / EVALUATION).exists():
        raise DataError(f"{path / FOLDER} has no {EVALUATION}: the evaluation hasn't ended")
    terms, after = read_evaluation(path / FOLDER)
    _check_weights(path)
    # What the run measured itself was on terms of its own, so only its curve is kept.
    return dataclasses.replace(run, terms=terms, after=after, before=None, difference={})


def _check_weights(path: Path) -> None:
    """Refuse an evaluation of another policy, or of weights that the run had before it went on.

    Weights that the evaluation names, and that aren't younger, aren't read: they may be many
    gigabytes.

    Raises:
        DataError: it is one.
    """
    files = list((path / FINAL).glob("*.safetensors"))
    if not files:
        return
    table = Table(path / FOLDER / EVALUATION, read_json(path / FOLDER / EVALUATION))
    named = Path(table.text("policy")).expanduser().resolve() == (path / FINAL).resolve()
    written = table.path.stat().st_mtime
    if named and all(file.stat().st_mtime <= written for file in files):
        return
    from guerdon.trainer.evaluate.policy.inputs import fingerprint

    told = table.values.get("policy_sha256")
    if told and told != fingerprint(path / FINAL):
        raise DataError(
            f"{path / FOLDER} is of other weights than {path / FINAL}: evaluate the run anew"
        )


def _plain_evaluation(path: Path) -> Run:
    terms, after = read_evaluation(path)
    table = Table(path / EVALUATION, read_json(path / EVALUATION))
    policy = table.text("policy")
    weights = table.values.get("policy_sha256")  # the same weights may have two names
    start = weights == terms.reference_sha256 if weights else policy == terms.reference
    return Run(path, path.name, "", policy, terms=terms, after=after, is_start=start)


def read_evaluation(path: Path) -> tuple[Terms, RunMeasures]:
    """What `guerdon eval policy` left in a folder.

    Raises:
        DataError: it is of another format, or malformed.
    """
    table = Table(path / EVALUATION, read_json(path / EVALUATION))
    if table.values.get("format") != FORMAT:
        raise DataError(
            f"{table.path} has format {table.values.get('format')!r}, not {FORMAT}: another "
            "version of guerdon wrote it"
        )
    measures = table.table("measures")
    estimates = {name: measures.estimate(name) for name in measures.values}
    if "reward" not in estimates:
        raise measures.wrong("reward", "is missing")
    wins, against = {}, ""
    if table.values.get("win_rate") is not None:
        rates = table.table("win_rate")
        against = rates.text("against")
        wins = {name: rates.estimate(name) for name in rates.values if name != "against"}
    whole = table.table("prompts").integer("count") * table.integer("samples_per_prompt")
    rows, answers = _samples(path / SAMPLES, whole)
    terms = _terms(table, heldout="heldout_reward" in estimates)
    return terms, RunMeasures(
        estimates,
        rows,
        {1: table.number("distinct_1"), 2: table.number("distinct_2")},
        wins,
        against,
        {
            name: {value: values.table(value).estimates() for value in values.values}
            for name, values in table.table("subgroups").tables()
        },
        answers,
        table.integer("samples_per_prompt"),
        table.warnings(),
    )


def _terms(table: Table, *, heldout: bool) -> Terms:
    prompts = table.table("prompts")
    revisions = table.values.get("revisions") or {}
    if not isinstance(revisions, dict):
        raise table.wrong("revisions", "is not an object")
    return Terms(
        prompts.text("sha256"),
        prompts.text("source"),
        prompts.integer("count"),
        parse_rewards(table.texts("rewards")),
        (str(table.values.get("heldout") or "") or "a model") if heldout else "",
        table.text("reference"),
        table.integer("max_tokens"),
        table.number("temperature"),
        _canonical(revisions.get("rewards")),
        _canonical(revisions.get("heldout")),
        str(table.values.get("reference_sha256") or ""),
        _columns(prompts),
        str(prompts.values.get("split", "test")),
    )


def _columns(table: Table) -> tuple[str, str]:
    """The columns of prompt and answer; older folders name none."""
    prompt, answer = (table.values.get(f"{name}_key", name) for name in ("prompt", "answer"))
    return str(prompt), str(answer)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True) if value else ""


def parse_rewards(given: Sequence[str]) -> tuple[tuple[float, str], ...]:
    """Weights and names of `NAME` or `WEIGHT*NAME`, in an order of their own.

    Raises:
        SettingsError: a weight can't be.
    """
    return tuple(sorted(split_weight(text, "rewards") for text in given))


def _samples(path: Path, whole: int) -> tuple[dict[str, dict[int, float]], dict[int, ShownAnswer]]:
    """Each prompt's means of both rewards, and its first answer."""
    found: dict[str, dict[int, list[float]]] = {}
    answers: dict[int, ShownAnswer] = {}
    count = 0
    for table in read_tables(path):
        count += 1
        place = table.integer("prompt_index")
        reward, heldout = table.number("reward"), table.optional("heldout_reward")
        for name, value in (("reward", reward), ("heldout_reward", heldout)):
            if value is not None:
                found.setdefault(name, {}).setdefault(place, []).append(value)
        if place not in answers:
            answers[place] = ShownAnswer(
                _prompt(table.values.get("prompt")), table.text("response"), reward, heldout
            )
    if count != whole:
        raise DataError(f"{path} has {count} completions of {whole}")
    means = {
        name: {place: sum(values) / len(values) for place, values in sorted(of.items())}
        for name, of in found.items()
    }
    return means, answers


def _prompt(given: Any) -> str:
    """The last turn of messages; text as it is."""
    if isinstance(given, Sequence) and not isinstance(given, str) and given:
        last = given[-1]
        return str(last.get("content", "") if isinstance(last, Mapping) else last)
    return str(given or "")


def _trained(path: Path) -> Run:
    """What a run of any recipe says of itself."""
    table = Table(path / SUMMARY, read_json(path / SUMMARY))
    try:
        given = tomllib.loads((path / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path / SETTINGS} can't be read: {error}") from error
    settings = Table(path / SETTINGS, given)
    if "algorithm" not in table.values:
        raise table.wrong("algorithm", "is missing: not the summary of a policy's run")
    recipe = table.text("algorithm")
    seconds = table.table("seconds")
    run = Run(
        path,
        path.name,
        recipe,
        table.text("policy"),
        str(settings.values.get("train") or settings.values.get("prompts") or ""),
        table.integer("seed"),
        table.integer("steps"),
        sum(seconds.number(name) for name in seconds.values) / 60,
        warnings=table.warnings(),
    )
    sampled = "reward" in table.table("before").values  # it measured itself on prompts
    return _reinforced(run, table, settings) if sampled else _aligned(run, table)


def _aligned(run: Run, table: Table) -> Run:
    """SFT, DPO, ORPO: likelihoods, no samples that were scored."""
    before, after = table.table("before"), table.table("after")
    accuracy = nll = None
    if "implicit_accuracy" in after.values:
        found = after.table("implicit_accuracy")
        accuracy = (found.number("value"), found.number("low"), found.number("high"))
    for name in ("nll", "chosen_nll"):
        if name in after.values and name in before.values:
            nll = (before.number(name), after.number(name))
    return dataclasses.replace(run, accuracy=accuracy, nll=nll)


def _reinforced(run: Run, table: Table, settings: Table) -> Run:
    """PPO and all that sample: they measure themselves, on held-out prompts."""
    before, after = (_evaluated(table.table(name)) for name in ("before", "after"))
    served, heldout = (
        [parse_reward(text, key) for text in settings.texts(key)]
        for key in ("reward", "heldout_reward")
    )
    normalized = settings.values.get("reward_normalize") is True
    rewards = [(spec.weight, spec.described(normalized=normalized)) for spec in served]
    terms = Terms(
        settings.text("eval_prompts"),
        settings.text("eval_prompts"),
        after.reward.n,
        tuple(sorted([*rewards, *parse_rewards(settings.texts("verifier"))])),
        " + ".join(spec.described(normalized=normalized) for spec in heldout),
        run.base,
        settings.integer("max_tokens"),
        settings.number("temperature"),
        columns=_columns(settings),
        split=str(settings.values.get("eval_prompts_split", "test")),
        own=True,
    )
    pairs = _own_samples(run.path / SAMPLES)
    return dataclasses.replace(
        run,
        terms=terms,
        curve_terms=terms,
        before=dataclasses.replace(before, answers={i: pair[0] for i, pair in pairs.items()}),
        after=dataclasses.replace(after, answers={i: pair[1] for i, pair in pairs.items()}),
        difference=table.table("difference").estimates(),
        curve=_curve(run.path / METRICS),
    )


def _evaluated(table: Table) -> RunMeasures:
    """`before` or `after` of a summary."""
    plain = {field.name for field in dataclasses.fields(Evaluation)}
    estimates = {name: table.estimate(name) for name in table.values if name not in plain}
    if "reward" not in estimates:
        raise table.wrong("reward", "is missing")
    per_prompt = table.integer("completions") // max(1, table.integer("prompts"))
    distinct = {1: table.number("distinct_1"), 2: table.number("distinct_2")}
    return RunMeasures(estimates, distinct=distinct, samples_per_prompt=per_prompt)


def _own_samples(path: Path) -> dict[int, tuple[ShownAnswer, ShownAnswer]]:
    try:
        pairs = before_and_after(path)
        return {
            int(before["prompt_index"]): (_own_answer(before), _own_answer(after))
            for before, after in pairs
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} can't be read: {error!r}") from error


def _own_answer(row: Mapping[str, Any]) -> ShownAnswer:
    return ShownAnswer(_prompt(row["prompt"]), str(row["response"]), float(row["reward"]))


def _curve(path: Path) -> tuple[Point, ...]:
    """The evaluations in metrics.jsonl that have both reward and KL."""
    if not path.exists():
        return ()
    return tuple(
        Point(
            table.integer("step"),
            table.number("eval/reward"),
            table.number("eval/kl"),
            table.optional("eval/heldout_reward"),
        )
        for table in read_tables(path)
        if "eval/reward" in table.values and "eval/kl" in table.values
    )

"""Tables of a study's results: the rate of each method is chosen on validation rows, and reported on test rows.

Intervals are Student's, at 95 %, over seeds. Knows nothing of how a run is made.
"""

import statistics
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from ptuning.evaluation import half_width

Records = Sequence[Mapping[str, Any]]


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and half the width of its 95 % interval over seeds; None for one seed."""
    return statistics.mean(values), half_width(values)


def chosen(records: Records) -> dict[tuple[str, str], Records]:
    """(task, method) -> the records, one a seed, of the settings that are best on validation rows."""
    by_settings: dict[tuple[str, str], dict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        task, method, settings = record["group"]
        by_settings[task, method][settings].append(record)
    return {key: _best(list(variants.values())) for key, variants in by_settings.items()}


def _best(variants: Sequence[Records]) -> Records:
    if len(variants) == 1:
        return variants[0]
    shared = set.intersection(*({record["seed"] for record in each} for each in variants))
    return max(variants, key=lambda each: _validation(each, shared))


def _validation(records: Records, seeds: Collection[int]) -> tuple[float, float]:
    """Mean accuracy, then minus the mean loss, on validation rows; over all seeds where none is shared."""
    seen = [record["validation"] for record in records if record["seed"] in seeds or not seeds]
    accuracy, loss = (statistics.mean(each[key] for each in seen) for key in ("accuracy", "loss"))
    return accuracy, -loss


def accuracy_table(records: Records) -> list[str]:
    """Test accuracy by task and method, the mean over tasks, and the wall-clock, as a Markdown table."""
    best = chosen(records)
    tasks, methods = _tasks_and_methods(best)
    lines = [f"| method | {' | '.join(tasks)} | mean of tasks | s a run |", "|---" * (len(tasks) + 3) + "|"]
    for method in methods:
        cells = [_accuracies(best.get((task, method), ()), "test") for task in tasks]
        ran = [best[task, method] for task in tasks if (task, method) in best]
        common = mean_of_tasks(ran) if len(ran) == len(tasks) else []
        mean = _written(interval(common)) if common else ""
        seconds = statistics.mean(record["seconds"] for each in ran for record in each)
        lines.append(f"| {method} | {' | '.join(cells)} | {mean} | {seconds:.0f} |")
    return lines


def settings_table(records: Records) -> list[str]:
    """Accuracy on validation and test rows for all settings, and without a prompt where that was measured."""
    lines = [
        "| task | method | slots | settings | seeds | without prompt, test | validation | test | s a run |",
        "|---" * 9 + "|",
    ]
    by_group: dict[tuple[str, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        by_group[tuple(record["group"])].append(record)
    for (task, method, _), each in sorted(by_group.items()):
        scores = [_accuracies(each, split) for split in ("without", "validation", "test")]
        settings = ", ".join(f"{key.split('.')[-1]} {value}" for key, value in each[0]["settings"].items())
        seconds = statistics.mean(record["seconds"] for record in each)
        cells = [task, method, " ".join(each[0]["slots"].split()), settings, str(len(each)), *scores, f"{seconds:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _accuracies(records: Records, split: str) -> str:
    """Their mean and interval; empty where they were not measured."""
    measured = [record[split]["accuracy"] for record in records if record.get(split)]
    return _written(interval(measured)) if measured else ""


def differences_table(records: Records, ours: str) -> list[str]:
    """How far a method is above each other one on test rows, by task and in the mean, seed by seed."""
    best = chosen(records)
    tasks, methods = _tasks_and_methods(best)
    lines = [f"| {ours} above | {' | '.join(tasks)} | mean of tasks |", "|---" * (len(tasks) + 2) + "|"]
    for method in methods:
        if method == ours:
            continue
        shared = [task for task in tasks if (task, ours) in best and (task, method) in best]
        pairs = [_paired(best[task, ours], best[task, method]) for task in shared]
        seeds = sorted(set.intersection(*map(set, pairs))) if len(shared) == len(tasks) else []
        by_seed = [statistics.mean(each[seed] for each in pairs) for seed in seeds]
        found = zip(shared, pairs, strict=True)
        told = {task: _written(interval(list(each.values())), "+.3f") for task, each in found if each}
        cells = [told.get(task, "") for task in tasks]
        mean = _written(interval(by_seed), "+.3f") if by_seed else ""
        lines.append(f"| {method} | {' | '.join(cells)} | {mean} |")
    return lines


def texts_table(records: Records) -> list[str]:
    """Accuracy of what was read in the prompts' place, and how often each verdict was given, by task and method."""
    by_group: dict[tuple[str, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        if "texts" in record:
            by_group[tuple(record["group"])].append(record)
    names = list(
        dict.fromkeys(text["prompt"] for each in by_group.values() for record in each for text in record["texts"])
    )
    lines = [f"| task | method | {' | '.join(names)} | verdicts |", "|---" * (len(names) + 3) + "|"]
    for (task, method, _), each in sorted(by_group.items()):
        found = [{text["prompt"]: text for text in record["texts"]} for record in each]
        cells = [_of_text([texts[name] for texts in found if name in texts]) for name in names]
        lines.append(f"| {task} | {method} | {' | '.join(cells)} | {_counted(record['verdict'] for record in each)} |")
    return lines


def _of_text(texts: Sequence[Mapping[str, Any]]) -> str:
    """The mean accuracy with one thing in the prompts' place, and the verdicts on it."""
    if not texts:
        return ""
    verdicts = _counted(text["verdict"] for text in texts if text["verdict"])
    return _written(interval([text["accuracy"] for text in texts])) + (f" ({verdicts})" if verdicts else "")


def _counted(words: Iterable[str]) -> str:
    """Words as "2 x PARTIAL, 1 x DECORATIVE"."""
    return ", ".join(f"{number} x {word}" for word, number in Counter(words).most_common())


def _tasks_and_methods(best: Mapping[tuple[str, str], Records]) -> tuple[list[str], list[str]]:
    """Each task and each method once, in order."""
    return list(dict.fromkeys(task for task, _ in best)), list(dict.fromkeys(method for _, method in best))


def mean_of_tasks(of_tasks: Sequence[Records]) -> list[float]:
    """For each seed that all tasks have, the mean test accuracy over tasks."""
    accuracies = [_by_seed(records) for records in of_tasks]
    seeds = sorted(set.intersection(*map(set, accuracies)))
    return [statistics.mean(each[seed] for each in accuracies) for seed in seeds]


def _paired(ours: Records, theirs: Records) -> dict[int, float]:
    """Seed -> the difference in test accuracy, of the seeds that both have."""
    other = _by_seed(theirs)
    return {seed: accuracy - other[seed] for seed, accuracy in _by_seed(ours).items() if seed in other}


def _by_seed(records: Records) -> dict[int, float]:
    """Seed -> accuracy on test rows."""
    return {record["seed"]: record["test"]["accuracy"] for record in records}


def _written(estimate: tuple[float, float | None], form: str = ".3f") -> str:
    mean, half = estimate
    return f"{mean:{form}}" if half is None else f"{mean:{form}} ± {half:.3f}"

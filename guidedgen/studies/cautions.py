"""Warnings about a study's figures: missing samples, unlike rows, metrics that share a network with the guidance."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from guidedgen.runs import config, contents
from guidedgen.studies.study import Run, Study, options

# Features of FID's Inception. Of fewer images than features the covariance is singular, and FID mostly bias (Chong and Forsyth,
# 2020, "Effectively Unbiased FID and Inception Score and where to find them").
_FID_IMAGES = 2048
# Below which a percentile bootstrap over prompts is too narrow: by sqrt(1 - 1/n), and as z is against t (Hesterberg, 2015, "What
# Teachers Should Know About the Bootstrap", 4.1): together by 9 % at n = 20.
_PROMPTS = 20
_NAMED = 4  # runs, or options, that are named before the rest is counted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Caution:
    """A sentence, and whether it may change the conclusion from the figures."""

    text: str
    serious: bool = True


def cautions(study: Study) -> list[Caution]:
    """All that apply, serious ones first."""
    judged = [run for run in study.rows if run.judged]
    found = [*_damaged(study), *_unfinished(study), *_failed(study.runs), *_shared(judged), *_few(judged), *_unlike(study, judged)]
    found += [*_blurred(judged), *_unrecorded(judged), *_unlike_judges(judged)]
    return sorted(found, key=lambda caution: not caution.serious)


def _named(runs: Sequence[Run]) -> str:
    return _listed([run.name for run in runs])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _damaged(study: Study) -> Iterator[Caution]:
    """What is not shown, or not whole."""
    for name, why in study.damaged.items():
        yield Caution(text=f"{name} is damaged and not shown: {why}.")
    for run in study.runs:
        if run.damaged_lines:
            yield Caution(
                text=f"{run.name}: {run.damaged_lines} lines of its records are damaged; its own command makes them again."
            )


def _unfinished(study: Study) -> Iterator[Caution]:
    if open_ := [run for run in study.runs if not run.done]:
        yield Caution(
            text=f"{len(open_)} of {len(study.runs)} runs are not done: {_named(open_)}. The page shows what there is so far."
        )


def _failed(runs: Sequence[Run]) -> Iterator[Caution]:
    """What is left out; the metrics' own list has the samples that failed without guidance too."""
    for run in runs:
        failures = {**run.metrics.get("failures", {}), **run.failures}
        reasons = collections.Counter(failures.values())
        if reasons:
            summary = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
            many = "sample has failed and is" if len(failures) == 1 else "samples have failed and are"
            yield Caution(text=f"{run.name}: {len(failures)} {many} not in its figures ({summary}).")


def _shared(runs: Sequence[Run]) -> Iterator[Caution]:
    guided = [run for run in runs if not run.unguided]
    by_metric: dict[str, list[Run]] = {}
    for run in guided:
        entries: dict[str, Mapping[str, object]] = {**run.metrics["scores"], **run.metrics.get("distances", {})}
        if found := run.metrics.get("per_class"):
            entries["class fid"] = found
        for name, entry in entries.items():
            if entry.get("shares_guide"):
                by_metric.setdefault(name, []).append(run)
    by_runs: dict[tuple[str, ...], list[str]] = {}
    for name, those in by_metric.items():
        by_runs.setdefault(tuple(run.name for run in those), []).append(name)
    for names, metrics in by_runs.items():
        named = set(names)
        those = [run for run in guided if run.name in named]
        whom = "every guided run" if len(those) == len(guided) else _named(those)
        yield Caution(
            text=f"{', '.join(metrics)} (marked *): measured by a network that also guided {whom}. Such a figure can rise without "
            "the pictures getting better; trust those without an asterisk."
        )


def _few(runs: Sequence[Run]) -> Iterator[Caution]:
    sizes = [
        min(run.metrics["compared"]) for run in runs if "fid" in run.metrics.get("distances", {}) and run.metrics.get("compared")
    ]
    if sizes and min(sizes) < _FID_IMAGES:
        yield Caution(
            text=f"FID of {_span(sizes)} images is mostly bias, which shrinks as 1/n: with fewer than {_FID_IMAGES:,} compare rows "
            "of equal n alone, and rather by CMMD."
        )
    if classes := [run for run in runs if run.metrics.get("per_class")]:
        each = [run.metrics["samples"] // max(1, run.metrics["per_class"]["classes"]) for run in classes]
        yield Caution(
            text=f"class fid has about {_span(each)} images a class: its bias is larger still; read its change, not its value."
        )
    prompts = [run.metrics["prompts"] for run in runs if run.metrics["scores"] and "prompts" in run.metrics]
    if prompts and min(prompts) < _PROMPTS:
        yield Caution(text=f"Intervals are over {_span(prompts)} prompts: a bootstrap over fewer than {_PROMPTS} is too narrow.")


def _span(values: Sequence[int]) -> str:
    return f"{min(values):,}" if min(values) == max(values) else f"{min(values):,} to {max(values):,}"


def _unlike(study: Study, judged: Sequence[Run]) -> Iterator[Caution]:
    """Where rows differ in more than the method."""
    samples = collections.defaultdict(list)
    for run in judged:
        samples[frozenset(record.name for record in run.records)].append(run)
    if len(samples) > 1:
        groups = "; ".join(f"{len(names)} samples: {_named(runs)}" for names, runs in samples.items())
        yield Caution(text=f"Rows are over different samples and compare only within a group ({groups}).")
    yield from _unlike_rewards([run for run in judged if not run.unguided])
    settings = {run.setting for run in judged if not run.unguided}
    unguided = [run for run in study.runs if run.unguided and run.setting in settings]
    if len(unguided) > 1:
        text = f"{len(unguided)} unguided runs, of different settings: wins and distances of a row are against its own."
        yield Caution(text=text, serious=False)
    for what, key in (("commits", "commit"), ("devices", "device")):
        found = collections.Counter(str(run.environment[key]) for run in judged if run.environment.get(key))
        if len(found) > 1:
            versions = ", ".join(f"{value[:12] if key == 'commit' else value} ({count})" for value, count in found.most_common())
            yield Caution(text=f"Rows are of several {what}: {versions}.", serious=False)


def _unlike_rewards(runs: Sequence[Run]) -> Iterator[Caution]:
    """Rewards of one name that are not the same in all rows: sums of other weights, say. Where they are computed does not count."""
    by_name: dict[str, list[dict[str, str]]] = {}
    for run in runs:
        if node := run.config.get("reward"):
            settings = {key: str(value) for key, value in options(node) if key.rpartition(".")[2] != "device"}
            by_name.setdefault(config.module_of(node), []).append(settings)
    for name, those in by_name.items():
        keys = [
            key
            for key in dict.fromkeys(key for settings in those for key in settings)
            if len({settings.get(key) for settings in those}) > 1
        ]
        if keys:
            yield Caution(text=f"{name} is not the same in every row, it differs in {_listed(keys)}: do not compare rows by it.")


def _unlike_judges(runs: Sequence[Run]) -> Iterator[Caution]:
    """Files of the judges that held something else when other rows were judged."""
    held: dict[str, set[str]] = {}
    for run in runs:
        for name, digest in (contents.recorded(run.metrics, "judged_with") or {}).get("metrics", {}).items():
            held.setdefault(name, set()).add(digest)
    if names := [name for name, digests in held.items() if len(digests) > 1]:
        text = f"Not every row is judged by the same content of {_listed(names)}: do not compare rows by what reads it."
        yield Caution(text=f"{text} scripts/evaluate.py judges stored runs again.")


def _unrecorded(runs: Sequence[Run]) -> Iterator[Caution]:
    if old := [run for run in runs if contents.recorded(run.environment) is None]:
        many = "1 run does" if len(old) == 1 else f"{len(old)} runs do"
        text = f"{many} not record what the files held that made it, as runs of earlier versions: {_named(old)}."
        yield Caution(text=text, serious=False)


def _blurred(runs: Sequence[Run]) -> Iterator[Caution]:
    for run in runs:
        if count := run.metrics.get("blurred"):
            yield Caution(text=f"{run.name}: {count} pictures are stored blurred and left out of distances.", serious=False)

"""From config to a checked job: all parts of a run, built before any network is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.tasks import Sample, Task
from guidedgen.datasets.tasks import check_text
from guidedgen.methods import Learner, Method
from guidedgen.models import tuning
from guidedgen.models.latent import LatentModel
from guidedgen.models.stable_diffusion import StableDiffusion
from guidedgen.runs import blurring, building, checks, config, evaluate, identity, options
from guidedgen.runs.job import Job
from guidedgen.runs.shards import Shard, find_shard
from guidedgen.runs.store import RunFolder, check_writable


def prepare(cfg: DictConfig, tasks: Sequence[Task] | None = None) -> Job:
    """Builds and checks a run. Raises UsageError for whatever is wrong with it; loads no network.

    `tasks` replace those of a data set that is no longer there.
    Inside `config.sharing` it is the same job for all configs that differ only in a valid seed.
    """
    shard = find_shard(options.value(cfg, "shard.count"), options.value(cfg, "shard.index"), os.environ)
    if shard.count > 1 and options.value(cfg, "run.fresh"):
        raise UsageError("run.fresh=true: not where others write too (shard.count above 1); remove the run's folder first")
    cfg = options.settled(cfg, shard)

    def checked() -> Job:
        for name in map(str, cfg.zoo):  # of which a run uses a few: a slip in another would go unseen
            if cfg.zoo[name] is not None:
                config.check_node(cfg.zoo[name], f"zoo.{name}", tuple(cfg.allow_targets))
        job = _prepare(cfg, shard, tasks=tasks)
        try:
            check_writable(job.folder.path.parent, "outputs")
        except UsageError:
            if cfg.run.fresh or not job.folder.done:  # a finished run is shown, wherever it is
                raise
        return job

    if tasks is not None:
        return checked()
    return config.once(checked, lambda: ("job", shard, config.as_text({**identity.plain_values(cfg), "seed": None})))


def _prepare(cfg: DictConfig, shard: Shard, model: LatentModel | None = None, tasks: Sequence[Task] | None = None) -> Job:
    """The job, on a model that another job has built where one is given: its networks are then loaded once."""
    allow = tuple(cfg.allow_targets)
    method = config.build(cfg.method, "method", allow)
    scheduler = config.build(cfg.scheduler, "scheduler", allow)
    own = building.tasks_of(cfg.dataset, allow) if tasks is None else tasks
    tasks = building.with_source(own, method)
    checks.combination(cfg, method, scheduler, tasks)
    model = config.build(cfg.model, "model", allow) if model is None else model
    try:
        if negative := cfg.model.get("negative_prompt"):
            check_text("negative_prompt", negative)
    except BadValue as error:
        raise UsageError(f"model.{error.name}={error.value}: {error.rule}") from error
    try:
        grid = scheduler.grid(model.schedule)
    except BadValue as error:
        raise UsageError(f"scheduler.{error.name}={error.value}: {error.rule}") from error
    checks.ends(cfg, method, grid)
    checks.guidance(cfg, method, grid)
    checks.flow(cfg, method, grid)
    checks.kind(cfg, method, model)
    checks.mixing(cfg, method, scheduler, model)
    checks.memory(method, model)
    lessons, originals = _lessons(cfg, shard, method, model)
    everything = [*tasks, *(lesson.task for lesson in lessons)]
    reserved = method.tuning.num_vectors if isinstance(method, Learner) and method.tuning.what == "token" else 0
    for each in (model, model.weak):
        if each is not None:
            each.check(building.read_by_model(method, everything), reserved)
    reward = building.reward_of(cfg, method, everything, lessons, allow)
    scorers = {
        **({config.module_of(cfg.reward): reward, **getattr(reward, "reports", {})} if cfg.reward else {}),
        **building.each(cfg.metrics.scorers, "metrics.scorers", allow),
    }
    blurs = blurring.applies(cfg, method, reward, scorers)
    parts = identity.digests(identity.plain_values(cfg), tasks=own, method=method, model=model, scheduler=scheduler, reward=reward)
    run_id = identity.run_id_of(identity.plain_values(cfg), parts, guided=method.needs.reward, blurs=blurs)
    distances = building.each(cfg.metrics.distances, "metrics.distances", allow)
    apart = _apart(cfg, shard, model, own, distances)  # before a folder is read that it may contradict
    base, reference = _reference(cfg, shard, model, own)
    return Job(
        cfg=cfg,
        run_id=run_id,
        contents=identity.deciding(parts, guided=method.needs.reward, blurs=blurs),
        folder=RunFolder(identity.folder_of(cfg, run_id, guided=method.needs.reward), shard.part),
        model=model,
        method=method,
        reward=reward,
        scheduler=scheduler,
        grid=grid,
        samples=building.samples_of(tasks, cfg.seed, cfg.samples_per_prompt, "samples_per_prompt"),
        scorers=scorers,
        distances=distances,
        per_class=building.per_class(cfg, tasks, allow),
        tracker=config.build(cfg.tracker, "tracker", allow) if cfg.tracker else None,
        base=base,
        apart=apart,
        reference=reference,
        blurs=blurs,
        lessons=lessons,
        originals=originals,
        shard=shard,
    )


def _lessons(cfg: DictConfig, shard: Shard, method: Method, model: LatentModel) -> tuple[Sequence[Sample], Job | None]:
    """What a method learns on, and the unguided run that draws its originals; nothing where it does not learn."""
    if not isinstance(method, Learner):
        return (), None
    if not isinstance(model, StableDiffusion):
        name = f"method={config.module_of(cfg.method)}"
        raise UsageError(f"{name} learns for Stable Diffusion 1 and 2 alone, and model={cfg.model.name} is another")
    tuning.check(method.tuning, model)
    lessons, node = method.lessons, identity.unguided(cfg)
    template = config.escaped(lessons.target)
    node.dataset = {"_target_": "guidedgen.datasets.templated.Templated", "prompts": cfg.method.prompts, "template": template}
    node.samples_per_prompt, node.seed = lessons.noises_per_prompt, lessons.seed
    node.reward, node.reference, node.metrics = None, "none", {"scorers": {}, "distances": {}}
    tasks = building.lesson_tasks(method)
    samples = building.samples_of(tasks, lessons.seed, lessons.noises_per_prompt, "method.noises_per_prompt")
    return samples, _prepare(node, shard, model)


def _reference(cfg: DictConfig, shard: Shard, model: LatentModel, tasks: Sequence[Task]) -> tuple[Job | None, Path | None]:
    """What a run is measured against: the unguided job, or a folder. The unguided run itself has no base."""
    if cfg.reference == "none" or (cfg.reference == "base" and config.module_of(cfg.method) == "base"):
        return None, None
    if cfg.reference == "base":
        return _prepare(identity.unguided(cfg), shard, model, tasks), None
    folder = config.once(lambda: evaluate.check_reference(Path(cfg.reference)), lambda: ("reference", cfg.reference))
    return None, folder


def _apart(cfg: DictConfig, shard: Shard, model: LatentModel, tasks: Sequence[Task], distances: Mapping[str, Any]) -> Job | None:
    """The unguided run at other seeds, where distances are measured to one. Raises UsageError where that makes no sense."""
    seed = cfg.get("reference_seed")
    if seed is None or cfg.reference == "none":
        return None
    given = f"reference_seed={seed}"
    if cfg.reference != "base":
        other = f"reference={cfg.reference} is another"
        raise UsageError(f"{given}: is of the unguided run, and {other}; leave out one: reference_seed=null")
    if abs(seed - cfg.seed) < cfg.samples_per_prompt:
        after = cfg.seed + cfg.samples_per_prompt
        raise UsageError(f"{given}: shares seeds with the run, which has {cfg.seed} to {after - 1}; {after} is the next one")
    for key in (f"metrics.distances.{name}" for name, measure in distances.items() if getattr(measure, "paired", False)):
        raise UsageError(f"{given}: {key} compares pictures of equal seeds; ~{key} does without")
    return _prepare(identity.unguided(cfg, seed), shard, model, tasks)

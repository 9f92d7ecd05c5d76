"""Builds the parts of a run, each from one node of its config, and checks them together with what they are used for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.tasks import Sample, Task
from guidedgen.basics.templates import fill
from guidedgen.datasets.references import read_reference
from guidedgen.methods import Learner, Method
from guidedgen.metrics.classes import PerClass
from guidedgen.runs import config, options


def tasks_of(node: DictConfig, allow: Sequence[str]) -> Sequence[Task]:
    """The tasks of a data set. Raises UsageError where an option of it is wrong."""
    try:
        dataset = config.build(node, "dataset", allow)
        return config.once(lambda: list(dataset.tasks()), lambda: ("tasks", tuple(allow), config.as_text(node)))
    except BadValue as error:
        raise UsageError(f"dataset.{error.name}={error.value}: {error.rule}") from error


def with_source(tasks: Sequence[Task], method: Method) -> Sequence[Task]:
    """The tasks, with the picture that the method starts from as their reference where it names one."""
    picture = source(method)
    return tasks if picture is None else [dataclasses.replace(task, reference=picture) for task in tasks]


def source(method: Method) -> str | None:
    """The file of the picture that the method starts from, where it names one."""
    source = getattr(method, "source_image", None)
    if source is None:
        return None
    try:
        return read_reference("source_image", source).path
    except BadValue as error:
        raise UsageError(f"method.source_image={source}: {error.rule}") from error


def lesson_tasks(method: Learner) -> Sequence[Task]:
    """The prompts that a method learns on. Raises UsageError where an option of them is wrong."""
    try:
        return method.lessons.prompts.tasks()
    except BadValue as error:
        raise UsageError(f"method.prompts.{error.name}={error.value}: {error.rule}") from error


def read_by_model(method: Method, tasks: Sequence[Task]) -> list[Task]:
    """The tasks with the prompts that the model reads under a method."""
    return [dataclasses.replace(task, prompt=fill(method.needs.prompt, task.prompt)) for task in tasks]


def samples_of(tasks: Sequence[Task], seed: int, count: int, key: str) -> Sequence[Sample]:
    """`count` samples of each task, the first of this seed. Raises UsageError where they would fill the memory."""
    if len(tasks) * count > options.SAMPLES:
        raise UsageError(f"{key}={count}: {len(tasks)} prompts make {len(tasks) * count} samples; {options.SAMPLES} are the most")
    return [Sample(task=task, seed=seed + i) for task in tasks for i in range(count)]


def each(nodes: DictConfig, key: str, allow: Sequence[str]) -> dict[str, Any]:
    """The objects that the nodes describe, by name; null nodes are left out."""
    names = [name for name in map(str, nodes) if nodes[name] is not None]
    for name in names:
        if not (isinstance(nodes[name], DictConfig) and "_target_" in nodes[name]):
            raise UsageError(f"{key}.{name}={nodes[name]}: expected a node with _target_, or null for none")
    return {name: config.build(nodes[name], f"{key}.{name}", allow) for name in names}


def reward_of(cfg: DictConfig, method: Method, tasks: Sequence[Task], lessons: Sequence[Sample], allow: Sequence[str]) -> Any:
    """The reward, or None. Raises UsageError where it cannot score the tasks, or the lessons that the method learns from, or has no
    gradient and the method needs one.
    """
    if not cfg.reward:
        return None
    reward = config.build(config.without_weightless(cfg.reward), "reward", allow)
    if hasattr(reward, "check"):
        reward.check(tasks)
    if lessons and hasattr(reward, "check_lessons"):
        try:
            reward.check_lessons([lesson.name for lesson in lessons])
        except BadValue as error:
            raise UsageError(f"reward.{error.name}={error.value}: {error.rule}") from error
    if getattr(reward, "needs_original", False) and cfg.reference != "base" and method.needs.gradient:
        raise UsageError(f"reward={config.module_of(cfg.reward)} compares with the unguided pictures: it needs reference=base")
    if method.needs.gradient and not reward.differentiable:
        raise UsageError(
            f"reward={config.module_of(cfg.reward)} has no gradient and method={config.module_of(cfg.method)} needs one; "
            "try method=code, method=codex with method.zero_order_samples=10, or another reward"
        )
    return reward


def per_class(cfg: DictConfig, tasks: Sequence[Task], allow: Sequence[str]) -> PerClass | None:
    """The metric per class, if the metrics have one; None for the unguided run, which has no run to be measured against."""
    node = cfg.metrics.get("per_class")
    if node is None:
        return None
    config.check_node(node, "metrics.per_class", allow)
    if config.module_of(cfg.method) == "base":
        return None
    hint = "; metrics.per_class=null does without"
    if cfg.reference != "base":
        raise UsageError(
            f"reference={cfg.reference}: metrics.per_class gives the change against the unguided run: base is needed{hint}"
        )
    if cfg.samples_per_prompt < 2:
        raise UsageError(f"samples_per_prompt={cfg.samples_per_prompt}: metrics.per_class needs 2 pictures of each prompt{hint}")
    measure: PerClass = config.build(node, "metrics.per_class", allow)
    measure.pictures.check(tasks)
    return measure

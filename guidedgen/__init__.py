"""guidedgen: inference-time guidance of diffusion models, one experiment runner for many methods.

Packages, and which others each may import (checked by tests/test_layers.py):

    basics       errors, tasks and samples, images, noise, cost, precision, attention
    process      noise schedules, grids, formulas, step rules, chains               <- basics
    gradients    how to differentiate a whole chain                                 <- basics, process
    methods      one paper, one file; `problem` is what a method is given           <- basics, process, gradients
    lab          the bundled world and its trained weights                          <- basics
    zoo          reward and metric networks, and where weights are found            <- basics, lab
    models       Stable Diffusion 1 to 3.5 in diffusers' folders, what is learned   <- basics, process, zoo
    datasets     one data set, one file: a sequence of tasks                        <- basics, lab
    rewards      one scorer, one file                                               <- basics, zoo
    metrics      features -> statistics -> distance; per-image scores               <- basics, zoo, rewards
    runs         one run: config -> checked job -> samples, scores, folder          <- all of these
    studies      many runs: sweeps, their state, tables, the page                   <- all of these
    cli          the command line, its help, what the terminal shows                <- all of these
    api          guidedgen from Python: guide, run, compose, results                <- all of these

A protocol is defined in the `__init__` of the package whose classes implement it. Importing guidedgen does not import torch,
diffusers or transformers: what a notebook needs is loaded when it is first used.

  guide          pictures of prompts, guided towards a reward, from a pipeline of your own or a model by name
  run, compose   what `python run.py ...` runs, and its config
  read_run       a run's pictures, scores, traces and cost; read_study all runs of a study
  load_model     a model for `Problem.from_model`, which a method is called with by hand
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guidedgen.api.guiding import compose, guide, load_model, read_run, run
    from guidedgen.api.results import Result
    from guidedgen.basics.errors import UsageError
    from guidedgen.methods.problem import Problem
    from guidedgen.studies.study import Study, read_study

_FROM = {
    "compose": "api.guiding", "guide": "api.guiding", "load_model": "api.guiding", "read_run": "api.guiding", "run": "api.guiding",
    "Result": "api.results", "UsageError": "basics.errors", "Problem": "methods.problem",
    "Study": "studies.study", "read_study": "studies.study",
}  # fmt: skip

__all__ = [
    "Problem",
    "Result",
    "Study",
    "UsageError",
    "compose",
    "guide",
    "load_model",
    "read_run",
    "read_study",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_FROM[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

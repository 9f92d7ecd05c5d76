"""Runs one experiment, or with -m a sweep: python run.py method=code reward=aesthetic (see README.md; --help lists all options)."""

import shutil
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from guidedgen.cli import command_line, terminal, usage
from guidedgen.runs import config, objective


def prepare(cfg: DictConfig) -> object:
    from guidedgen.runs import preparation

    job = preparation.prepare(cfg)
    objective.check(job)
    return job


def announce(overrides: list[str], config_dir: Path | None) -> None:
    """Says what of a sweep is done and what is missing."""
    from guidedgen.studies import status, sweeps

    if runs := sweeps.listed(overrides, config_dir):
        states = status.of_sweep(runs)
        if any(state.state != "missing" for state in states):
            status.show(states)
        print(status.summary(states), flush=True)
        sweeps.composed_once()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    from guidedgen.runs import experiment

    return experiment.main(cfg)


def command() -> None:
    sys.argv[1:] = command_line.for_hydra(sys.argv[1:])
    if command_line.asks_for_help(sys.argv[1:]):
        print(usage.text(config.CONF, shutil.get_terminal_size((132, 24)).columns))
        return
    command_line.preflight(sys.argv[1:], prepare)
    if swept := command_line.swept(sys.argv[1:]):
        announce(*swept)
    main()


if __name__ == "__main__":
    terminal.run(command)

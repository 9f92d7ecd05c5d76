"""Runs one experiment, or with -m a sweep: python run.py method=code reward=aesthetic (see README.md; --help lists all options)."""

import sys

import hydra
from omegaconf import DictConfig

from guidedgen import config


def prepare(cfg: DictConfig) -> object:
    from guidedgen import jobs  # imports torch: not for --help

    return jobs.prepare(cfg)


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    from guidedgen import experiment

    experiment.main(cfg)


if __name__ == "__main__":
    sys.argv[1:] = config.command_line(sys.argv[1:])
    config.preflight(sys.argv[1:], prepare)
    main()

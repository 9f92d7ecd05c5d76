"""Shows the states of the runs of a study, or of a sweep.

    python scripts/status.py outputs/<study>                                every run that was started
    python scripts/status.py method=code,codex reward=aesthetic seed=0,1    every run of a sweep, those not started too

done; running; partial: stopped or killed, the same command goes on; failed, with its reason; damaged, with what is; missing.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from guidedgen.basics.errors import UsageError
from guidedgen.cli import terminal
from guidedgen.runs import composition


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("what", nargs="+", help="folders of studies, or the overrides of a sweep")
    parser.add_argument("--failed", action="store_true", help="show those alone that are not done")
    parser.add_argument("--config-dir", type=lambda given: Path(given).absolute(), help="a sweep's, if it has one")
    asked = parser.parse_intermixed_args(arguments)
    from guidedgen.cli import command_line
    from guidedgen.studies import status, sweeps

    folders = [Path(given) for given in asked.what if "=" not in given or os.path.isdir(given)]
    if folders and len(folders) < len(asked.what):
        raise UsageError(f"{folders[0]}: folders of studies, or the overrides of a sweep, not both")
    if folders:
        for folder in folders:
            if not os.path.isdir(folder):
                raise UsageError(f"{folder}: no such folder; give a study's, as outputs/default, or a sweep's overrides")
        states = [state for folder in folders for state in status.of_study(folder)]
    else:
        overrides = command_line.for_hydra(composition.arguments(asked.what, asked.config_dir))
        command_line.preflight(["-m", *overrides], lambda _: None)
        overrides = [override for override in overrides if not override.startswith("--")]
        states = status.of_sweep(sweeps.runs(overrides, asked.config_dir))
    status.show([state for state in states if not asked.failed or state.state != "done"])
    print(status.summary(states))


if __name__ == "__main__":
    terminal.run(lambda: main(sys.argv[1:]))

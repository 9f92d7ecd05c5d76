"""Judges run folders again, from their stored images, and rewrites their metrics.json.

    python scripts/evaluate.py outputs/<study>/<run>                        by what they were judged by
    python scripts/evaluate.py outputs/<study>/<run> metrics=lab            by other metrics, instead of those
    python scripts/evaluate.py outputs/<study>/<run> ~metrics.scorers.taste reference=none

What can change is what judges: metrics, reward and zoo, whole or by their keys; reference, reference_seed,
batch_size, device and allow_targets.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from guidedgen.basics.errors import UsageError
from guidedgen.cli import terminal


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("what", nargs="+", help="folders of runs, and overrides as in metrics=lab")
    parser.add_argument("--config-dir", type=lambda given: Path(given).absolute(), help="a folder with options of your own")
    asked = parser.parse_intermixed_args(arguments)
    what = asked.what
    overrides = [given for given in what if ("=" in given or given.startswith(("+", "~"))) and not os.path.isdir(given)]
    folders = [Path(given) for given in what if given not in overrides]
    if not folders:
        parser.error("no run: give its folder, as in outputs/<study>/<run>")
    from guidedgen.runs import rejudging, report

    wrong = []
    for folder in folders:  # one that cannot be judged does not hide the others
        try:
            if not os.path.isdir(folder):
                raise UsageError(f"{folder}: no such folder; give a run's, as in outputs/<study>/<run>")
            report.show(rejudging.judge_again(folder, overrides, asked.config_dir))
        except UsageError as error:
            wrong.append(f"guidedgen: {' '.join(str(error).split())}")
    print(*dict.fromkeys(wrong), sep="\n", end="\n" if wrong else "", file=sys.stderr)  # of a wrong override, all say the same
    sys.exit(2 if wrong else 0)


if __name__ == "__main__":
    terminal.run(lambda: main(sys.argv[1:]))

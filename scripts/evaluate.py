"""Judges run folders again, from their stored images: python scripts/evaluate.py outputs/<study>/<run> [metrics=lab ...]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from guidedgen.types import UsageError


def main(arguments: list[str]) -> None:
    overrides = [argument for argument in arguments if "=" in argument]
    folders = [Path(argument) for argument in arguments if "=" not in argument]
    if not folders or set(arguments) & {"-h", "--help"}:
        sys.exit(__doc__)
    from guidedgen import judging, report

    try:
        for folder in folders:
            report.show(judging.judge_again(folder, overrides))
    except UsageError as error:
        print(f"guidedgen: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])

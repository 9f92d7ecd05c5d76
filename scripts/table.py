"""Prints a study's runs as a Markdown table: python scripts/table.py outputs/<study>"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from guidedgen.types import UsageError


def main(arguments: list[str]) -> None:
    if not arguments or set(arguments) & {"-h", "--help"}:
        sys.exit(__doc__)
    from guidedgen import report

    try:
        print("\n\n".join(report.study_table(Path(folder)) for folder in arguments))
    except UsageError as error:
        print(f"guidedgen: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])

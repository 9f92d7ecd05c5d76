"""Writes a study's page, report.html, with its tables as CSV and LaTeX beside it: python scripts/report.py outputs/<study>"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from guidedgen.types import UsageError


def main(arguments: list[str]) -> None:
    if not arguments or set(arguments) & {"-h", "--help"}:
        sys.exit(__doc__)
    from guidedgen.pages import page

    try:
        for folder in arguments:
            print("\n".join(map(str, page.write(Path(folder)))))
    except UsageError as error:
        print(f"guidedgen: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Writes a study's page, report.html, with its tables as CSV and LaTeX next to it: python scripts/report.py outputs/<study>"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from guidedgen.basics.errors import UsageError, printable
from guidedgen.cli import terminal


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("folders", nargs="+", type=Path, help="of studies, as outputs/default")
    folders = parser.parse_args(arguments).folders
    from guidedgen.studies import page

    wrong = 0
    for folder in folders:  # one that cannot be read does not hide the others
        try:
            if not os.path.isdir(folder):
                raise UsageError(f"{folder}: no such folder; give a study's, as outputs/default")
            print("\n".join(printable(str(path)) for path in page.write(folder)))
        except UsageError as error:
            print(f"guidedgen: {error}", file=sys.stderr)
            wrong = 2
    sys.exit(wrong)


if __name__ == "__main__":
    terminal.run(lambda: main(sys.argv[1:]))

"""Prints a study's runs as a Markdown table: python scripts/table.py outputs/<study>"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from guidedgen import terminal
from guidedgen.types import UsageError


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("folders", nargs="+", type=Path, help="of studies, as outputs/default")
    folders = parser.parse_args(arguments).folders
    for folder in folders:
        if not os.path.isdir(folder):
            raise UsageError(f"{folder}: no such folder; give a study's, as outputs/default")
    from guidedgen import report

    print("\n\n".join(report.study_table(folder) for folder in folders))


if __name__ == "__main__":
    terminal.run(lambda: main(sys.argv[1:]))

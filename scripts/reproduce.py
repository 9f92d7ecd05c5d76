"""The tables and figures of the four papers: lists them, and runs one.

    python scripts/reproduce.py list                          all of them, with what there is of each
    python scripts/reproduce.py doodl/table_2                 the paper's own setting
    python scripts/reproduce.py doodl/table_2 --lab           its version on the lab model, on a CPU
    python scripts/reproduce.py codex/table_1 --lab dataset.limit=2 samples_per_prompt=2     with other values
    python scripts/reproduce.py doodl/table_2 --show          the commands, without running them
    python scripts/reproduce.py page > docs/tables.md         the page of all of them

The same command again resumes. The runs' table is printed at the end, and their page is written.
"""

import argparse
import itertools
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from guidedgen.basics.errors import UsageError
from guidedgen.cli import terminal

if TYPE_CHECKING:
    from guidedgen.studies.papers import Item

RUN = Path(__file__).resolve().parent.parent / "run.py"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("what", help="list, page, or the id of a table or figure")
    parser.add_argument("overrides", nargs="*", help="for run.py, as in dataset.limit=2")
    parser.add_argument("--lab", action="store_true", help="on the lab model")
    parser.add_argument("--show", action="store_true", help="print the commands and run nothing")
    asked = parser.parse_intermixed_args(arguments)
    from guidedgen.studies import page, papers, tables

    if asked.what in ("list", "page"):
        if asked.overrides or asked.lab or asked.show:
            raise UsageError(f"{asked.what}: takes nothing else")
        print(papers.page() if asked.what == "page" else "".join(_listed(papers.items())), end="")
        return
    item = papers.item(asked.what)
    if asked.show:
        lines = item.lab if asked.lab else item.run
        if not lines:
            next(item.commands(lab=asked.lab))  # says why
        print(*(papers.shown([*line, *asked.overrides]) for line in lines), sep="\n")
        return
    for command in item.commands(lab=asked.lab, overrides=asked.overrides):
        print(f"guidedgen: python run.py {shlex.join(command)}", file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, str(RUN), *command], check=False)
        if done.returncode:
            sys.exit(done.returncode)
    folder = item.study(lab=asked.lab, overrides=asked.overrides)
    print(tables.study_table(folder))
    print(*page.write(folder), sep="\n")


def _listed(items: "Sequence[Item]") -> Iterator[str]:
    for paper, group in itertools.groupby(items, lambda item: item.paper):
        yield f"{paper}\n"
        for item in group:
            yield f"  {item.id:<28} {item.what}\n{'':<31}{item.state}\n"


if __name__ == "__main__":
    terminal.run(lambda: main(sys.argv[1:]))

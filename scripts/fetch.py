"""Fetches what runs read, so that they need no network: models, networks with their configs and tokenizers, prompts. Of each no
more than is read, and nothing that is there. Sizes are printed first; what is interrupted goes on where it stopped.

python scripts/fetch.py experiment=codex/pickscore           all that python run.py -m experiment=codex/pickscore reads, every row
python scripts/fetch.py model=sd21 reward=blip2,hps          any overrides of run.py; --config-dir as there
python scripts/fetch.py --all                                model=sd15 with the default reward and metrics
python scripts/fetch.py --check experiment=codex/aesthetic   what of it is there and what is missing (then the exit code is 1)
python scripts/fetch.py pickscore t2i_compbench sd14         what a reward, metrics or a model reads of the hub
python scripts/fetch.py org/name org/name/folder@revision    a model of the hub
python scripts/fetch.py aesthetic inception vgg19            single files that live elsewhere, checked by SHA-256
python scripts/fetch.py data t2i_compbench hpdv2             prompts of benchmarks, checked by SHA-256
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.cli import fetching
from guidedgen.datasets import downloads
from guidedgen.datasets.tasks import check_choice
from guidedgen.zoo.needed import Part, Survey

SHOWN = 5  # names of missing files
UNITS = ("bytes", "kB", "MB", "GB", "TB")


def choose(arguments: argparse.Namespace) -> list[fetching.Reader]:
    """What a command line asks for. Raises UsageError where a name is wrong."""
    names: list[str] = arguments.names
    if "data" in names:
        if arguments.all or names[0] != "data" or "data" in names[1:]:
            raise UsageError("data: comes first and alone, as in python scripts/fetch.py data hpdv2; weights need another command")
        if not names[1:]:
            raise UsageError(f"data: names of benchmarks are needed; choose from {', '.join(downloads.SOURCES)}")
        for name in names[1:]:
            check_data(name)
        return [reader for name in names[1:] for reader in fetching.of_data(name)]
    overrides = [name for name in names if "=" in name or name.startswith("~")]
    if not names and not arguments.all:
        raise UsageError("nothing to fetch: give an experiment, overrides of run.py or names, or --all")
    readers = [reader for name in names if name not in overrides for reader in fetching.of_name(name)]
    if overrides:
        readers += fetching.of_command(overrides, arguments.config_dir)
    if arguments.all:
        readers += fetching.of_command(["model=sd15"])
    return readers


def check_data(name: str) -> None:
    try:
        check_choice("data", name, downloads.SOURCES)
    except BadValue as error:
        raise UsageError(f"data {name}: {error.rule}") from error


def in_words(size: int | None) -> str:
    """A number of bytes, as in "3.4 GB"."""
    if size is None:
        return "size unknown"
    unit = 0
    while size >= 1000 ** (unit + 1) and unit < len(UNITS) - 1:
        unit += 1
    return f"{size} bytes" if unit == 0 else f"{size / 1000**unit:.1f} {UNITS[unit]}"


def total(surveys: Sequence[Survey]) -> int | None:
    """The bytes of all that is missing; None where those of a part are not known."""
    sizes = [size for survey in surveys for _, size in survey.missing]
    return None if None in sizes else sum(size or 0 for size in sizes)


def report(part: Part, survey: Survey) -> None:
    """Prints what of a part is there."""
    there = f"{survey.files} file{'s' * (survey.files != 1)}, {in_words(survey.size)}" if survey.size else f"{survey.files} files"
    if not survey.missing:
        print(f"{part.name}: here ({there})")
        return
    named = [name if size is None else f"{name} ({in_words(size)})" for name, size in survey.missing]
    if len(named) > SHOWN:
        named[SHOWN - 1 :] = [f"{len(named) - SHOWN + 1} more"]
    whole = "" if len(named) == 1 or total([survey]) is None else f" {in_words(total([survey]))}:"
    print(f"{part.name}: missing{whole} {', '.join(named)}" + (f"; here {there}" if survey.files else ""))


def survey(parts: Sequence[Part]) -> tuple[dict[str, tuple[Part, Survey]], dict[str, str]]:
    """What of the parts is there, and why that cannot be found out of others; by their names."""
    found, failed = {}, {}
    for part in parts:
        try:
            found[part.name] = part, part.survey()
        except (UsageError, OSError) as error:
            failed[part.name] = why(part, error)
    return found, failed


def why(part: Part, error: Exception) -> str:
    return f"{error}" if isinstance(error, UsageError) else f"{part.name}: cannot be had ({error})"


def fail(failed: dict[str, str]) -> NoReturn:
    (_, first), *others = failed.items()
    refuse(first + (f"; nor could be had: {', '.join(name for name, _ in others)}" if others else ""), 1)


def check(readers: Sequence[fetching.Reader], parts: Sequence[Part], command: str) -> None:
    """Lists what is there and what is missing, which ends the process with exit code 1."""
    found, failed = survey(parts)
    for part, surveyed in found.values():
        report(part, surveyed)
    if failed:
        fail(failed)
    if lacking := [surveyed for _, surveyed in found.values() if surveyed.missing]:
        refuse(f"{in_words(total(lacking))} missing in {len(lacking)} of {len(parts)}; fetch it with: {command}", 1)
    verify(readers)


def download(readers: Sequence[fetching.Reader], parts: Sequence[Part]) -> None:
    """Downloads what is missing, and prints where everything is. A failed download does not stop the others."""
    found, failed = survey(parts)
    missing = [(part, surveyed) for part, surveyed in found.values() if surveyed.missing]
    if any(not isinstance(part, fetching.Prompts) for part, _ in missing):
        for part, surveyed in missing:
            report(part, surveyed)
        print(f"{in_words(total([surveyed for _, surveyed in missing]))} to download", flush=True)
    for part, surveyed in found.values():
        try:
            print(f"{part.name}: {part.download() if surveyed.missing else surveyed.where}", flush=True)
        except (UsageError, OSError) as error:
            failed[part.name] = why(part, error)
    if failed:
        fail(failed)
    verify(readers)


def verify(readers: Sequence[fetching.Reader]) -> None:
    """Raises UsageError where what is there is not what a run needs."""
    for reader in readers:
        reader.check()


def refuse(message: object, code: int) -> NoReturn:
    sys.stdout.flush()
    print(f"fetch: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="what", help="overrides of run.py, names, or data and names")
    parser.add_argument("--all", action="store_true", help="what model=sd15 reads")
    parser.add_argument("--check", action="store_true", help="download nothing; print what is missing")
    parser.add_argument("--config-dir", type=lambda given: Path(given).absolute(), help="a folder of further options")
    arguments = parser.parse_intermixed_args()
    try:
        readers = choose(arguments)
    except UsageError as error:
        refuse(error, 2)
    parts = fetching.distinct(readers)
    if not parts:
        print("all that it reads comes with guidedgen, or is yours (model=sd15 reads Stable Diffusion and its networks)")
    try:
        if arguments.check:
            command = shlex.join(["python", "scripts/fetch.py", *(name for name in sys.argv[1:] if name != "--check")])
            check(readers, parts, command)
        else:
            download(readers, parts)
    except (UsageError, OSError) as error:
        refuse(error, 1)
    except KeyboardInterrupt:
        refuse("stopped; the same command goes on from there", 130)


if __name__ == "__main__":
    main()

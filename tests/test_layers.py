"""Who imports whom, read from the source: function-local imports count too."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import guidedgen

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "guidedgen"

# A room may import itself and these. A new room needs a row, a new arrow a reason.
ALLOWED = {
    "types": set(),
    "images": set(),
    "noise": set(),
    "cost": set(),
    "precision": set(),
    "vision_language": set(),
    "process": {"types"},
    "augment": {"types", "noise"},
    "problem": {"types", "images", "noise", "augment", "process"},
    "models": {"types", "process", "images", "cost", "precision", "zoo"},
    "gradients": {"types", "process"},
    "methods": {"types", "process", "noise", "augment", "problem", "gradients"},
    "rewards": {"types", "images", "noise", "augment"},
    "metrics": {"types", "images"},
    "zoo": {"types", "images", "precision", "vision_language", "lab"},  # lab: the loaders of the shipped weights
    "datasets": {"types", "images", "lab"},  # images: references are read; lab: its prompts
    "lab": {"types", "images", "noise", "vision_language"},
    "shards": {"types"},
    "inside": set(),
    "shapes": set(),
    "locks": {"inside"},
    "store": {"types", "inside", "locks", "shapes"},
    "tracker": {"types", "images", "inside", "store"},
    "targets": {"types"},
    "plain_yaml": {"inside", "shapes"},
    "config": {"types", "plain_yaml", "targets"},
    "terminal": {"types"},
    "hydra_settings": {"types"},
    "option_files": {"types"},
    "command_line": {"types", "config", "hydra_settings", "option_files"},
    "usage": {"config"},
    "contents": {"types"},
    "evaluate": {"types", "images", "metrics", "rewards", "zoo", "store"},
    "pages": {"types", "inside", "shapes", "store", "config", "contents"},
    "report": {"types", "images", "cost", "store", "evaluate", "pages"},
    "options": {"types", "config", "shards", "targets"},
    "jobs": {
        "types", "images", "process", "models", "datasets", "metrics", "shards", "store", "tracker", "config", "contents", "evaluate",
        "options",
    },
    "sweeps": {"types", "config", "command_line", "jobs"},
    "status": {"types", "store", "sweeps"},
    "fetching": {"types", "targets", "config", "command_line", "datasets", "models", "zoo"},
    "learning": {"types", "cost", "problem", "models", "store", "report", "jobs", "sampling"},
    "sampling": {"types", "images", "noise", "cost", "process", "problem", "store", "jobs", "report"},
    "judging": {"types", "config", "contents", "store", "jobs", "evaluate", "learning", "report", "sampling"},
    "rejudging": {"types", "config", "contents", "command_line", "store", "jobs", "evaluate", "sampling", "judging"},
    "experiment": {"types", "store", "jobs", "learning", "report", "sampling", "judging", "sweeps", "config"},
}  # fmt: skip
# For annotations only (`if TYPE_CHECKING`): protocols take what the rooms above types define.
ANNOTATIONS = {"types": {"problem", "process"}}

# Packages, and the only rooms that may import them; any other package needs a row and a line in pyproject.toml.
PACKAGES = {
    "torch": set(ALLOWED)
    - {"store", "tracker", "config", "command_line", "datasets", "pages", "targets", "hydra_settings", "option_files", "terminal"},
    "numpy": {"noise", "images", "evaluate", "metrics", "lab", "report"},
    "PIL": {"images", "evaluate", "rewards", "datasets", "lab", "report", "pages"},
    "diffusers": {"models", "lab"},
    "transformers": {"models", "zoo", "lab"},
    "open_clip": {"zoo", "lab"},
    "torch_fidelity": {"zoo"},
    "torchdiffeq": {"gradients"},
    "huggingface_hub": {"zoo"},
    "safetensors": {"models", "zoo", "lab"},
    "tokenizers": {"lab"},
    "sklearn": {"methods"},
    "kornia": {"augment"},
    "spacy": {"metrics"},
    "wandb": {"tracker"},
    "hydra": {"config", "hydra_settings", "command_line", "sweeps", "experiment"},
    "omegaconf": {
        "targets",
        "hydra_settings",
        "options",
        "plain_yaml",
        "config",
        "command_line",
        "fetching",
        "jobs",
        "sweeps",
        "judging",
        "rejudging",
        "experiment",
        "pages",
    },
    "yaml": {"plain_yaml", "option_files"},
    "peft": {"models"},
    "rich": {"report", "status", "lab"},
}
HEAVY = {
    "diffusers",
    "transformers",
    "open_clip",
    "torch_fidelity",
    "torchvision",
    "torchmetrics",
    "torchdiffeq",
    "peft",
    "sklearn",
    "kornia",
    "spacy",
    "wandb",
}


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, bool, bool]]:
    """Dotted names a file imports, whether at import time, and whether for annotations only."""

    def walk(node: ast.AST, top: bool, annotations: bool) -> Iterator[tuple[str, bool, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, top, annotations) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((f"{node.module}.{alias.name}", top, annotations) for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for child in node.body:
                yield from walk(child, False, True)
            for child in node.orelse:
                yield from walk(child, top, annotations)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from walk(child, top and not inside, annotations)

    yield from walk(ast.parse(path.read_text()), True, False)


def test_every_room_has_a_row() -> None:
    assert {room(path) for path in files()} == {*ALLOWED, "__init__"}


def test_the_package_s_docstring_names_every_room_once_and_no_arrow_that_is_not() -> None:
    told = re.findall(r"^    ((?:\w+, )*\w+)  .*?(?:<- (.+))?$", guidedgen.__doc__ or "", re.M)
    assert sorted(room for rooms, _ in told for room in rooms.split(", ")) == sorted(ALLOWED)
    for rooms, arrows in told:
        if arrows and arrows != "all of these":
            assert set(arrows.split(", ")) <= set.union(*(ALLOWED[room] for room in rooms.split(", "))), rooms


def test_the_walk_sees_every_kind_of_import(tmp_path: Path) -> None:
    file = tmp_path / "sample.py"
    file.write_text(
        "import a.b\nfrom c import d\nif TYPE_CHECKING:\n    import e\nelse:\n    import f\n"
        "def g():\n    import h\nclass I:\n    import j\n    def k(self):\n        try:\n            from l import m\n        finally: ...\n"
    )
    seen = {name: (top, annotations) for name, top, annotations in imports(file)}
    assert seen == {
        "a.b": (True, False), "c.d": (True, False), "e": (False, True), "f": (True, False), "h": (False, False),
        "j": (True, False), "l.m": (False, False),
    }  # fmt: skip


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    here = room(path)
    allowed = {here} | ALLOWED.get(here, set())
    for name, top, annotations in imports(path):
        package, *rest = name.split(".")
        if package == "guidedgen":
            extra = ANNOTATIONS.get(here, set()) if annotations else set()
            assert rest and rest[0] in allowed | extra, f"{here} imports {name}"
        elif package not in sys.stdlib_module_names:
            assert here in PACKAGES.get(package, set()), f"{here} imports {name}"
            assert annotations or not (top and package in HEAVY), f"{path.name} imports {name} before it is needed"


def test_methods_know_no_networks_and_no_config() -> None:
    """What keeps methods, rewards, models and data sets freely combinable; said apart from the table so that it is not lost in it."""
    strangers = {"rewards", "models", "datasets", "store", "zoo", "lab", "metrics", "tracker", "config", "experiment"}
    packages = {"hydra", "omegaconf", "diffusers", "transformers", "open_clip", "wandb"}
    for path in (PACKAGE / "methods").glob("*.py"):
        for name, _, _ in imports(path):
            first, *rest = name.split(".")
            assert first not in packages, f"{path.name}: {name}"
            assert first != "guidedgen" or rest[0] not in strangers, f"{path.name}: {name}"


def test_no_circle() -> None:
    done: set[str] = set()
    left = dict(ALLOWED)
    while ready := {here for here, needs in left.items() if needs <= done}:
        done |= ready
        left = {here: needs for here, needs in left.items() if here not in ready}
    assert left == {}


def test_the_docstring_promises_no_more_than_the_table() -> None:
    """Rows `rooms   what they are   <- rooms` of guidedgen's docstring."""
    rows = re.findall(r"^ {4}(\w+(?:, \w+)*) {2,}.*<- (\w+(?:, \w+)*)$", guidedgen.__doc__ or "", re.MULTILINE)
    rows = [row for row in rows if row[1] != "all of these"]
    assert len(rows) >= 7
    for rooms, may in rows:
        for here in rooms.split(", "):
            assert set(may.split(", ")) <= ALLOWED[here], here


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def test_importing_the_package_loads_no_framework(tmp_path: Path) -> None:
    code = (
        "import guidedgen, guidedgen.types, guidedgen.runs.config, guidedgen.runs.store, guidedgen.runs.tracker, guidedgen.zoo, sys\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'open_clip', 'wandb'} & set(sys.modules)))"
    )
    done = python("-c", code, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_help_names_every_group_and_loads_no_framework(tmp_path: Path) -> None:
    done = python("-X", "importtime", str(ROOT / "run.py"), "--help", cwd=tmp_path)
    assert done.returncode == 0
    loaded = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if line.count("|") == 2}
    assert "hydra" in loaded  # the log was read rightly
    assert not loaded & {"torch", "diffusers", "transformers", "open_clip", "wandb", "numpy"}
    for folder in sorted((ROOT / "conf").iterdir()):
        if folder.is_dir() and folder.name not in ("hydra", "settings") and any(folder.glob("*.yaml")):
            told = done.stdout.split(f"\n{folder.name}=\n")[1].split("\n\n")[0].splitlines()
            assert [line.split()[0] for line in told] == sorted(file.stem for file in folder.glob("*.yaml"))
            assert all(len(line.split()) > 1 for line in told), told  # and what each is

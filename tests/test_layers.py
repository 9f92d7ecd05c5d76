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

# A package may import itself and these. A new package needs a row, a new import a reason.
BELOW = {
    "basics": set(),
    "process": {"basics"},
    "gradients": {"basics", "process"},
    "methods": {"basics", "process", "gradients"},
    "lab": {"basics"},
    "zoo": {"basics", "lab"},  # the loaders of the shipped weights
    "models": {"basics", "process", "zoo"},
    "datasets": {"basics", "lab"},  # its prompts
    "rewards": {"basics", "zoo"},  # the networks' protocols
    "metrics": {"basics", "zoo", "rewards"},  # a scorer is a reward that does not guide
}
ALLOWED = {
    **BELOW,
    "runs": {*BELOW},
    "studies": {*BELOW, "runs"},
    "cli": {*BELOW, "runs", "studies"},
    "api": {*BELOW, "runs", "studies", "cli"},
}
PUBLIC = {"api", "basics", "methods", "runs", "studies"}  # whose names guidedgen itself offers

# Packages, and the only packages or modules that may import them; any other package needs a row and a line in pyproject.toml.
PACKAGES = {
    "torch": {*BELOW} - {"datasets"} | {
        "runs.blurring", "runs.contents", "runs.evaluate", "runs.experiment", "runs.film", "runs.checks", "runs.identity", "runs.preparation", "runs.judging", "runs.learning", "runs.options",
        "runs.sampling", "studies.law", "studies.sweeps", "cli.fetching", "api.guiding",
    },
    "numpy": {"basics", "metrics", "lab", "runs.evaluate", "runs.report"},
    "PIL": {"basics", "rewards", "datasets", "lab", "runs.evaluate", "runs.report", "runs.tracker", "studies.pictures", "api"},
    "diffusers": {"models", "lab"},
    "transformers": {"models", "zoo", "lab"},
    "open_clip": {"zoo", "lab"},
    "torch_fidelity": {"zoo"},
    "torchdiffeq": {"gradients"},
    "huggingface_hub": {"zoo"},
    "safetensors": {"models", "zoo", "lab"},
    "tokenizers": {"lab"},
    "sklearn": {"methods"},
    "kornia": {"basics"},
    "spacy": {"metrics"},
    "wandb": {"runs.tracker"},
    "hydra": {"runs", "studies", "cli"},
    "omegaconf": {"runs", "studies", "cli", "api"},
    "yaml": {"runs.plain_yaml", "cli.option_files"},
    "peft": {"models"},
    "accelerate": {"models"},
    "torchao": {"models"},
    "rich": {"lab", "runs.report", "studies.status"},
}  # fmt: skip
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


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module(path: Path) -> str:
    """package.module, as in runs.store."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts[:2])


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Dotted names a file imports, those for annotations only too, and whether as soon as it is imported itself."""

    def walk(node: ast.AST, top: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((f"{node.module}.{alias.name}", top) for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for child in node.body:
                yield from walk(child, False)
            for child in node.orelse:
                yield from walk(child, top)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from walk(child, top and not inside)

    yield from walk(ast.parse(path.read_text()), True)


def test_every_package_has_a_row_and_no_module_lies_loose() -> None:
    assert {package_of(path) for path in files()} == {*ALLOWED, "__init__"}
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py"}


def test_the_package_s_docstring_says_what_the_table_says() -> None:
    listed = re.findall(r"^    (\w+)  .*?(?:<- (.+))?$", guidedgen.__doc__ or "", re.M)
    assert [here for here, _ in listed] == [*ALLOWED]
    for i, (here, arrows) in enumerate(listed):
        assert ({*list(ALLOWED)[:i]} if arrows == "all of these" else {*filter(None, arrows.split(", "))}) == ALLOWED[here], here


def test_every_package_says_what_it_is() -> None:
    for here in ALLOWED:
        assert ast.get_docstring(ast.parse((PACKAGE / here / "__init__.py").read_text()))


def test_the_walk_sees_every_kind_of_import(tmp_path: Path) -> None:
    file = tmp_path / "sample.py"
    file.write_text(
        "import a.b\nfrom c import d\nif TYPE_CHECKING:\n    import e\nelse:\n    import f\n"
        "def g():\n    import h\nclass I:\n    import j\n    def k(self):\n        try:\n            from l import m\n        finally: ...\n"
    )
    assert dict(imports(file)) == {"a.b": True, "c.d": True, "e": False, "f": True, "h": False, "j": True, "l.m": False}


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_package_imports_only_what_it_may(path: Path) -> None:
    here = package_of(path)
    for name, top in imports(path):
        package, *rest = name.split(".")
        if package == "guidedgen":
            assert rest and rest[0] in {here} | ALLOWED.get(here, PUBLIC), f"{here} imports {name}"
        elif package not in sys.stdlib_module_names:
            assert {here, module(path)} & PACKAGES.get(package, set()), f"{here} imports {name}"
            assert not (top and package in HEAVY), f"{path.name} imports {name} before it is needed"


def test_methods_know_no_networks_and_no_config() -> None:
    """What keeps methods, rewards, models and data sets freely combinable; tested apart from the table so that it is not overlooked."""
    strangers = {"rewards", "models", "datasets", "zoo", "lab", "metrics", "runs", "studies", "cli"}
    packages = {"hydra", "omegaconf", "diffusers", "transformers", "open_clip", "wandb"}
    for path in (PACKAGE / "methods").glob("*.py"):
        for name, _ in imports(path):
            first, *rest = name.split(".")
            assert first not in packages, f"{path.name}: {name}"
            assert first != "guidedgen" or rest[0] not in strangers, f"{path.name}: {name}"


def test_no_circle() -> None:
    """Between packages."""
    done: set[str] = set()
    for here, needs in ALLOWED.items():
        assert needs <= done, here
        done.add(here)


def test_no_circle_between_the_modules_of_a_package() -> None:
    """Not even for annotations, except a package's own `__init__`: its protocols name what its modules define."""
    known = {".".join(("guidedgen", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in files()}
    left = {}
    for name, path in known.items():
        if path.name != "__init__.py":
            left[name] = {own for found, _ in imports(path) for own in (found, found.rpartition(".")[0]) if own in known} - {name}
    left = {name: {need for need in needs if need in left} for name, needs in left.items()}
    while ready := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in ready}
    assert left == {}


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def test_importing_the_package_loads_no_framework(tmp_path: Path) -> None:
    code = (
        "import guidedgen, guidedgen.methods, guidedgen.runs.config, guidedgen.runs.store, guidedgen.runs.tracker, guidedgen.zoo, sys\n"
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
            lines = done.stdout.split(f"\n{folder.name}=\n")[1].split("\n\n")[0].splitlines()
            files = folder.rglob("*.yaml") if folder.name == "experiment" else folder.glob("*.yaml")
            assert [line.split()[0] for line in lines] == sorted(
                file.relative_to(folder).with_suffix("").as_posix() for file in files
            )
            assert all(len(line.split()) > 1 for line in lines), lines  # and what each is

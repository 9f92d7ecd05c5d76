"""README and docs: what they say to write is written, what they say to run is run, links lead somewhere, the site builds."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import processes
import pytest

from guidedgen.lab.networks import WEIGHTS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
# Those whose commands have a test of their own (tests/test_papers.py), or none.
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md") if path.name != "tables.md")
NOTEBOOKS = sorted(path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.ipynb"))
QUICK = "scheduler.num_steps=4 tracker=none device=cpu"

pytestmark = pytest.mark.skipif(not (WEIGHTS / "generator" / "model_index.json").exists(), reason="the lab's weights are missing")


def blocks(text: str, kind: str) -> list[str]:
    """The fenced blocks of a kind."""
    return re.findall(rf"^ *```{kind}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command that starts with python."""
    for block in blocks(text, "bash"):
        for line in block.replace("\\\n", "").splitlines():
            if line.startswith("python "):
                yield shlex.split(line.split("  #")[0].replace("n_trials=20", "n_trials=1"))[1:]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What is here, the weights linked."""
    for folder in ("conf", "guidedgen", "scripts"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    (tmp_path / "guidedgen" / "lab" / "weights").symlink_to(WEIGHTS)
    shutil.copy(ROOT / "run.py", tmp_path)
    return tmp_path


def quick(script: str, arguments: list[str]) -> list[str]:
    """A command's arguments with what makes it short."""
    if script != "run.py" or "--help" in arguments:
        return arguments
    given = {argument.split("=")[0].lstrip("+~") for argument in arguments}
    unlimited = {"dataset=prompt", "dataset=templated"} & {*arguments} or "experiment" in given
    limit = [] if unlimited or "dataset.limit" in given else ["dataset.limit=1"]
    return [*arguments, *limit, *(option for option in QUICK.split() if option.split("=")[0] not in given)]


@pytest.mark.parametrize("page", [page for page in ["README.md", *PAGES] if blocks((ROOT / page).read_text("utf-8"), "bash")])
def test_a_page_s_files_and_commands_work(page: str, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for kind, file, content in re.findall(r"^```(python|yaml)\n# (\S+/\S+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        assert (kind == "python") == file.endswith(".py") and not (clone / file).exists()
        (clone / file).parent.mkdir(parents=True, exist_ok=True)
        (clone / file).write_text(content, encoding="utf-8")
    for script, *arguments in commands(text):
        if "<run>" in " ".join(arguments) or script == "-m":
            continue
        done = processes.run(clone / script, *quick(script, arguments), cwd=clone, PYTHONPATH=str(clone))
        assert done.returncode == 0, f"{script} {arguments}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks((ROOT / page).read_text("utf-8"), "python")])
def test_a_page_s_python_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks but those that are files, one after the other."""
    text = (ROOT / page).read_text(encoding="utf-8")
    own = [block for block in blocks(text, "python") if not re.match(r"# \S+/\S+\.py\n", block)]
    run_all(own, page, tmp_path, monkeypatch)


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_notebook_runs(notebook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = json.loads((ROOT / notebook).read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells)
    run_all(["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"], notebook, tmp_path, monkeypatch)


def run_all(parts: list[str], name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "page"}
    for i, part in enumerate(parts):
        exec(compile(part, f"{name}, part {i}", "exec"), names)


def test_every_method_reward_model_and_data_set_has_its_place() -> None:
    for group, where in {"method": "methods/index", "reward": "rewards", "model": "models", "dataset": "datasets"}.items():
        text = (DOCS / f"{where}.md").read_text(encoding="utf-8")
        for file in (ROOT / "conf" / group).glob("*.yaml"):
            assert f"`{file.stem}`" in text or f"({file.stem}.md)" in text, f"{where}: {file.stem}"
    for file in (ROOT / "conf" / "method").glob("*.yaml"):
        assert (DOCS / "methods" / f"{file.stem}.md").exists(), file.stem


@pytest.mark.parametrize("file", sorted((ROOT / "conf" / "method").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_method_s_page_has_all_of_its_options(file: Path) -> None:
    text = (DOCS / "methods" / f"{file.stem}.md").read_text(encoding="utf-8")
    for option in re.findall(r"^(\w+):", file.read_text(encoding="utf-8"), re.MULTILINE):
        assert option in ("defaults", "_target_") or re.search(rf"`{option}[`.]", text), option


def test_the_readme_is_for_two_minutes() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 900
    assert len(re.findall(r"!\[[^]]{20,}\]\(", text)) >= 2
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Strictly: pages that are not in its contents and links that lead nowhere are warnings."""
    build, config = pytest.importorskip("mkdocs.commands.build"), pytest.importorskip("mkdocs.config")
    build.build(config.load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    page = (tmp_path / "methods" / "doodl" / "index.html").read_text(encoding="utf-8")
    assert "<math" in page and "arithmatex" not in page.split("<article")[1].split("</article>")[0]

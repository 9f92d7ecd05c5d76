"""README's pages: what they say to write is written, and what they say to run is run."""

import re
import shlex
import shutil
from pathlib import Path

import processes
import pytest

from guidedgen.lab.networks import WEIGHTS

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("Add a method", "Add a reward", "Add a data set", "Run on SLURM", "Reproduce a paper's table")
QUICK = "dataset.limit=1 scheduler.num_steps=4 tracker=none device=cpu"

pytestmark = pytest.mark.skipif(not (WEIGHTS / "generator" / "model_index.json").exists(), reason="the lab's weights are missing")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What is here, the weights linked."""
    for folder in ("conf", "guidedgen", "scripts"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    (tmp_path / "guidedgen" / "lab" / "weights").symlink_to(WEIGHTS)
    shutil.copy(ROOT / "run.py", tmp_path)
    return tmp_path


def page(title: str) -> str:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.split(r"^## ", readme.split(f"\n## {title}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]


@pytest.mark.parametrize("title", PAGES)
def test_a_page_s_files_and_commands_work(title: str, clone: Path) -> None:
    text = page(title)
    for kind, file, content in re.findall(r"^```(python|yaml)\n# (\S+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        assert (kind == "python") == file.endswith(".py") and not (clone / file).exists()
        (clone / file).write_text(content, encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line.split("  #")[0] for block in blocks for line in block.replace("\\\n", "").splitlines()]
    commands = [line for line in lines if line.startswith("python ")]
    assert commands
    for command in commands:
        _, script, *arguments = shlex.split(command.replace("n_trials=20", "n_trials=1"))
        quick = QUICK.split() if script == "run.py" else []
        done = processes.run(clone / script, *arguments, *quick, cwd=clone, PYTHONPATH=str(clone))
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"

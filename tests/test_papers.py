"""The catalogue of the papers' tables and figures: complete, composing, and told by its page and its command as it is."""

import re
import shlex
from pathlib import Path

import processes
import pytest
from omegaconf import DictConfig, OmegaConf

from guidedgen.basics.errors import UsageError
from guidedgen.cli import command_line
from guidedgen.lab.networks import WEIGHTS
from guidedgen.runs import config, hydra_settings
from guidedgen.studies import papers

ROOT = config.CONF.parent
SCRIPT = "scripts/reproduce.py"
ITEMS = papers.items()
# Every numbered table and figure, as the papers count them.
COUNTS = {
    "doodl": {"table": range(1, 4), "figure": range(1, 10)},
    "adjoint": {"table": range(1, 5), "figure": range(1, 6)},
    "referee": {"table": range(1, 10), "figure": range(1, 14)},
    "codex": {"table": range(1, 7), "figure": range(1, 8)},
}
# What the user provides, and a name that stands for it.
YOURS = {
    "dataset.path": "x.txt", "zoo.classifier.path": "x", "metrics.per_class.pictures.path": "x", "dataset.images": "[x.png]",
    "dataset.prompts.path": "x.txt", "reference": "x", "method.target": "'{prompt}, bokeh'", "method.prompts.prompt": "x",
}  # fmt: skip


@pytest.mark.parametrize("paper", COUNTS)
def test_every_table_and_figure_of_a_paper_is_there(paper: str) -> None:
    known = {name: set() for name in COUNTS[paper]}
    for item in ITEMS:
        kind, _, rest = item.id.removeprefix(f"{paper}/").partition("_")
        if item.id.startswith(f"{paper}/") and kind.rstrip("s") in known:
            numbers = [int(number) for number in re.findall(r"(?<![\dA-Z]_)\b\d+|(?<=_)\d+|^\d+", rest)]
            known[kind.rstrip("s")] |= {*range(numbers[0], numbers[-1] + 1)} if "to" in rest else {*numbers}
    for kind, numbers in COUNTS[paper].items():
        assert {*numbers} <= known[kind]


def test_each_has_a_command_or_the_reason_why_not() -> None:
    for item in ITEMS:
        assert bool(item.run) != bool(item.why), item.id
        assert item.lab or not item.run or item.id == "adjoint/table_1_sd", item.id
        assert (
            re.search(rf"^###? {re.escape(item.measured)}$", (ROOT / "docs" / "results.md").read_text(), re.M) or not item.measured
        )


COMMANDS = {shlex.join(line): (item.yours, line in item.lab) for item in ITEMS for line in [*item.run, *item.lab]}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes(command: str) -> None:
    """In all combinations of rows, and at every value that it sweeps. What the user has to provide is said, and nothing else lacks."""
    needed, lab = COMMANDS[command]
    yours = [] if lab else [f"{key}={value}" for key, value in YOURS.items() if re.search(rf"[(, ]{re.escape(key)}[),]", needed)]
    studies: list[str] = []

    def prepare(cfg: DictConfig) -> None:
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        studies.append(cfg.study)

    command_line.check(hydra_settings.parsed([*shlex.split(command), *yours]), prepare)
    assert studies
    assert {name.split("_")[0] for name in studies} <= {*COUNTS}
    assert all(("_lab_" in name) == lab for name in studies)


def test_the_page_is_the_catalogue_s() -> None:
    assert (ROOT / "docs" / "tables.md").read_text(encoding="utf-8") == papers.page()


def test_an_unknown_one_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"did you mean doodl/table_2\?"):
        papers.item("doodl/table2")
    with pytest.raises(UsageError, match=r"has no command: a drawing"):
        next(papers.item("doodl/figure_3").commands(lab=False))
    with pytest.raises(UsageError, match=r"reference=outputs/adjoint_fine/\*: 0 folders have this name"):
        [*papers.item("adjoint/table_1_sd").commands(lab=False)]


@pytest.mark.skipif(not (WEIGHTS / "generator" / "model_index.json").exists(), reason="the lab's weights are missing")
def test_a_table_is_run_by_its_id(tmp_path: Path) -> None:
    brief = ["scheduler.num_steps=2", "table.num_updates=1", "tracker=none", "metrics=none"]
    done = processes.run(SCRIPT, "doodl/table_2", "--lab", *brief, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.split(" | ")[0] for line in done.stdout.splitlines() if re.match(r"\| (base|one_step|doodl) ", line)] == [
        "| base", "| one_step", "| doodl",
    ]  # fmt: skip
    assert (tmp_path / "outputs" / "doodl_lab_cost" / "report.html").exists()
    shown = processes.run(SCRIPT, "doodl/table_2", "--lab", "--show", *brief, cwd=tmp_path).stdout
    assert shown == f"python run.py -m experiment=doodl/lab/cost {' '.join(brief)}\n"
    failed = processes.run(SCRIPT, "doodl/figure_3", cwd=tmp_path)
    assert (failed.returncode, failed.stdout) == (2, "") and "a drawing" in failed.stderr

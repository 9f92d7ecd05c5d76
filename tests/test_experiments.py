"""The papers' tables: every row of every overlay makes a job, what it holds is what the paper says, and published figures are found."""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from guidedgen.cli import command_line
from guidedgen.lab.networks import WEIGHTS
from guidedgen.runs import composition, config, experiment, preparation
from guidedgen.studies import tables

LAB = ["model=lab", "zoo=lab", "metrics=lab", "dtype=float32"]  # in place of weights that are not here
BY_TABLE = {  # what the user has to provide, and what stands in for it
    "codex/pickscore": ["dataset=animals"],
    "codex/pickscore_sd14": ["dataset=animals"],
    "codex/ti2i": [
        "dataset@dataset.prompts=animals",
        "dataset.images=['lab:night']",
        "metrics.scorers.style_clip_rn50.published_code_range=false",
    ],
}
TABLES = [option for option in config.groups([config.CONF])["experiment"] if option.startswith("codex/")]
ROWS = sorted(f"codex/{file.stem}" for file in (config.CONF / "row" / "codex").glob("*.yaml"))


def swept(table: str) -> dict[str, list[str]]:
    """What a table's sweep goes through, by key."""
    params = composition.settings([f"experiment={table}"]).sweeper.params
    parsed = composition.parse([f"{key}={value}" for key, value in params.items()])
    return {item.key_or_group: [f"{item.get_key_element()}={value}" for value in item.sweep_string_iterator()] for item in parsed}


def overlay(table: str, *overrides: str) -> DictConfig:
    return composition.composed([f"experiment={table}", "device=cpu", *overrides])


CASES = [
    pytest.param(table, row, id=f"{table}-{row}")
    for table in TABLES
    for row in re.findall(r"codex/\w+", (config.CONF / "experiment" / f"{table}.yaml").read_text().split("\nhydra:")[1])
]


def stand_in(table: str) -> list[str]:
    """Replaces what is not here; nothing in the lab."""
    return [*LAB, *BY_TABLE.get(table, [])] if "/lab/" not in table else []


@pytest.mark.parametrize(("table", "row"), CASES)
def test_every_row_of_every_table_makes_a_job(table: str, row: str, tmp_path: Path) -> None:
    job = preparation.prepare(overlay(table, f"row={row}", f"outputs={tmp_path}", *stand_in(table)))
    assert job.cfg.table.row == row.split("/")[1]
    assert len(job.grid) - 1 == job.cfg.table["baseline_steps" if not job.cfg.table.code_range else "num_steps"]
    assert (job.base is None) == (row == "codex/base")


@pytest.mark.parametrize("table", TABLES)
def test_temperatures_can_be_annealed_in_every_table(table: str) -> None:
    method = overlay(table, "row=codex/annealed", *stand_in(table)).method
    assert method.temperature > method.final_temperature > 0


@pytest.mark.parametrize("table", TABLES)
def test_a_table_sweeps_rows_that_exist(table: str) -> None:
    rows = [override.removeprefix("row=") for override in swept(table)["row"]]
    assert rows == [case.values[1] for case in CASES if case.values[0] == table]
    assert set(rows) <= set(ROWS)
    assert len(set(rows)) == len(rows)


def test_every_row_is_swept_somewhere() -> None:
    assert {case.values[1] for case in CASES} == set(ROWS)


@pytest.mark.parametrize("table", [table for table in TABLES if "/lab/" not in table and not table.endswith("_sd14")])
def test_a_table_has_a_twin_in_the_lab(table: str) -> None:
    name = table.split("/")[1]
    assert {row.split("=")[1] for row in swept(table)["row"]} <= {row.split("=")[1] for row in swept(f"codex/lab/{name}")["row"]}
    assert overlay(f"codex/lab/{name}").model.name == "lab"


def test_the_rows_differ_in_what_is_sampled() -> None:
    """But for a base that two baselines share, no two rows of a table are one run."""
    for table in ("codex/aesthetic", "codex/lab/pickscore", "codex/compress"):
        rows = [row for name, row in (case.values for case in CASES) if name == table]
        assert len({config.identity(overlay(table, f"row={row}", *stand_in(table))) for row in rows}) == len(rows)


# The thesis' settings: 5 (500 DDPM steps, seed 2024, 10 images), appendices A.2 to A.5


@pytest.mark.parametrize(
    ("table", "steps", "gradient_block", "start", "strength", "temperature", "schedule"),
    [
        ("aesthetic", 500, 5, 0.6, 0.2, 0.001, [2, 2, 2, 4, 4, 4, 4, 6, 6, 6]),
        ("pickscore", 500, 4, 1.0, 0.2, 0.0003, [2, 6, 6, 2, 2, 2, 4, 4, 6, 6]),
        ("multireward", 500, 5, 1.0, 0.2, 0.001, [2, 2, 2, 4, 4, 4, 4, 6, 6, 6]),
        ("ti2i", 100, 2, 0.6, 0.4, 0.0003, None),
        ("compress", 500, 5, 0.6, 0.2, 0.001, None),
    ],
)
def test_codex_is_run_as_the_thesis_runs_it(
    table: str, steps: int, gradient_block: int, start: float, strength: float, temperature: float, schedule: list[int] | None
) -> None:
    cfg = overlay(f"codex/{table}", "row=codex/kmeans" if schedule else "row=codex/multinomial")
    method = OmegaConf.to_container(cfg.method, resolve=True)
    assert method["num_particles"] == (schedule or 4)
    assert method["cluster"] == bool(schedule)
    assert (method["block_size"], method["gradient_block_size"], method["window"]) == (5, gradient_block, [start, 0.0])
    assert (method["strength"], method["selection"], method["temperature"]) == (strength, "multinomial", temperature)
    assert (method["shared_start"], method["through"], method["max_scale"]) == (True, "decoder", 150)  # as the released code
    assert (cfg.seed, cfg.samples_per_prompt, cfg.model.guidance_scale) == (2024, 10, 5.0)
    assert cfg.scheduler._target_.endswith(".Ddpm")
    assert (cfg.scheduler.num_steps, cfg.scheduler.spacing) == (steps, "trailing")


@pytest.mark.parametrize(("table", "weight"), [("aesthetic", 30), ("pickscore", 150)])
def test_baselines_are_run_as_the_thesis_runs_them(table: str, weight: float) -> None:
    by_row = {row: overlay(f"codex/{table}", f"row=codex/{row}") for row in ("mpgd", "freedom", "universal")}
    for cfg in by_row.values():
        OmegaConf.resolve(cfg.method)
        assert (cfg.scheduler.num_steps, cfg.scheduler.spacing, cfg.scheduler.offset) == (100, "leading", 1)
    mpgd, freedom, universal = (by_row[row].method for row in ("mpgd", "freedom", "universal"))
    assert (mpgd.strength, mpgd.window, mpgd.over_alpha) == (7.5, [0.7, 0.3], True)
    assert (freedom.strength, freedom.window, freedom.num_repeats) == (0.2, [0.7, 0.3], 10)
    assert (universal.strength, universal.num_repeats, universal.backward_steps) == (weight, 6, 0)


def test_all_weights_of_appendix_a4_are_swept() -> None:
    gamma = [2, 3, 5, 10, 15, 20, 25, 30, 50, 70, 100, 150, 200, 250, 300, 350, 400, 450, 500, 750, 1000]
    found = []
    for override in swept("codex/multireward")["reward.weights"]:
        weights = overlay("codex/multireward", override).reward.weights
        assert all(weight == 0 for name, weight in weights.items() if name not in ("aesthetic", "pickscore"))
        found.append((weights.aesthetic, weights.pickscore))
    assert found == [(1, 0), (0, 1), *((1, value) for value in gamma)]
    assert overlay("codex/multireward").dataset.limit == 6
    assert overlay("codex/multireward").table.label == "greedy 1:150"


def test_aesthetic_rows_are_scored_as_their_released_codes_score() -> None:
    for row, flag in {"base": True, "code_40": True, "kmeans": True, "mpgd": False, "freedom": False, "universal": False}.items():
        assert overlay("codex/aesthetic", f"row=codex/{row}").reward.published_code_range is flag
        assert overlay("codex/lab/aesthetic", f"row=codex/{row}").reward.published_code_range is False


# Published figures

THESIS = json.loads((Path(__file__).parent / "golden" / "codex_thesis.json").read_text(encoding="utf-8"))["tables"]


@pytest.mark.parametrize("table", ["aesthetic", "pickscore", "ti2i", "compress"])
def test_published_figures_are_the_thesis_s(table: str) -> None:
    expected = THESIS[table]
    found: Any = OmegaConf.to_container(overlay(f"codex/{table}").table.published)
    if table in ("aesthetic", "pickscore"):  # the baselines are of another model
        others: Any = OmegaConf.to_container(overlay(f"codex/{table}_sd14").table.published)
        assert [row for row, figures in others.items() if figures] == ["mpgd", "freedom", "universal"]
        assert not found.keys() & {"mpgd", "freedom", "universal"}
        found = {row: others[row] or figures for row, figures in {**others, **found}.items()}
    assert len(expected) == {"aesthetic": 11, "pickscore": 11, "ti2i": 5, "compress": 6}[table]
    per_prompt = {"fid": "fid_per_prompt", "cmmd": "cmmd_per_prompt"}  # means over prompts, see metrics/sets.py
    renamed = {row: {per_prompt.get(name, name): value for name, value in figures.items()} for row, figures in expected.items()}
    assert {row: pytest.approx(values) for row, values in renamed.items()} == found


def test_a_figure_that_is_measured_in_another_way_is_not_compared() -> None:
    """FID of all images pooled, or to images of equal noise, is another quantity than the thesis prints."""
    row = ["experiment=codex/aesthetic", "row=codex/code_4"]
    figures = config.published(settled(*row))
    assert {*figures} == {"source", "reward", "fid_per_prompt", "cmmd_per_prompt", "t_clip", "minutes"}
    for change, lost in {
        "reference_seed=null": {"fid_per_prompt", "cmmd_per_prompt"},
        "reference=none": {"fid_per_prompt", "cmmd_per_prompt"},
        "metrics.scorers.clip_score.convention=t2i_compbench": {"t_clip"},
        "zoo.cmmd.path=/elsewhere": {"cmmd_per_prompt"},
        "batch_size=3": set(),
    }.items():
        assert {*figures} - {*config.published(settled(*row, change))} == lost


def settled(*overrides: str) -> DictConfig:
    """What a stored run's config is: resolved, and its device and dtype settled."""
    cfg = composition.composed([*overrides, "device=cpu", "dtype=float32"])
    OmegaConf.resolve(cfg)
    return cfg


def test_a_run_at_the_printed_setting_knows_its_figures() -> None:
    figures = config.published(settled("experiment=codex/aesthetic", "row=codex/code_40"))
    shown = {key: figures[key] for key in ("reward", "fid_per_prompt", "minutes")}
    assert shown == {"reward": 6.16, "fid_per_prompt": 91.52, "minutes": 57.53}
    assert figures["source"].startswith("CoDeX thesis, Tables 1 and 2")
    free = ["batch_size=2", "study=mine", "outputs=there", "tracker=none", "run.fresh=true"]
    assert config.published(settled("experiment=codex/aesthetic", "row=codex/code_40", *free)) == figures


@pytest.mark.parametrize(
    "change",
    [
        "seed=0", "samples_per_prompt=1", "dataset.limit=6", "method.block_size=4", "scheduler.num_steps=100", "table.num_steps=100",
        "model.guidance_scale=7.5", "model=sd21", "model=lab", "method=base", "dataset=lab", "reward.published_code_range=false",
    ],
)  # fmt: skip
def test_a_run_at_another_setting_has_none(change: str) -> None:
    assert config.published(settled("experiment=codex/aesthetic", "row=codex/code_4", change)) == {}


def test_a_run_outside_of_tables_has_no_figures() -> None:
    assert config.published(settled()) == {}
    assert config.published(settled("experiment=codex/lab/aesthetic")) == {}
    assert config.published(settled("experiment=codex/aesthetic", "row=codex/best_of_4")) == {}  # not in the thesis
    assert config.published(settled("experiment=codex/aesthetic", "table.name=codex/gone")) == {}


def test_where_the_user_s_files_lie_does_not_matter() -> None:
    run = settled("experiment=codex/pickscore", "row=codex/greedy", "dataset.path=/there/prompts.txt")
    assert config.published(run)["reward"] == 0.24444
    assert config.published(settled("experiment=codex/pickscore", "dataset.path=x", "dataset.limit=5")) == {}
    run = settled("experiment=codex/ti2i", "dataset.prompts.path=x", "dataset.images=[a,b,c]")
    assert config.published(run)["i_gram"] == 45.07
    assert config.published(settled("experiment=codex/ti2i", "dataset.images=[a]", "dataset.noise_ratio=0.5")) == {}
    assert config.published(settled("experiment=codex/ti2i", "dataset@dataset.prompts=lab", "dataset.images=[a]")) == {}


@pytest.mark.parametrize("runs", [False, True])
def test_published_figures_are_found_whether_hydra_runs_or_not(runs: bool) -> None:
    """It does not when a stored run is judged again by a script. The second time they are those of the first, and untouched."""
    run = settled("experiment=codex/compress", "row=codex/zero_50")
    other = settled("experiment=codex/compress", "row=codex/zero_50", "batch_size=7")
    with initialize_config_dir(str(config.CONF), version_base="1.3") if runs else contextlib.nullcontext():
        assert [config.published(run)["minutes"] for run in (run, other, run)] == [45.40] * 3
        run.scheduler.num_steps += 1
        assert config.published(run) == {}


@pytest.mark.parametrize("flags", [[], ["-m"]])
def test_published_figures_are_found_inside_hydra_s_main(flags: list[str], tmp_path: Path) -> None:
    """As when a run is judged by the process that sampled it."""
    code = (
        "import hydra, sys\nfrom omegaconf import OmegaConf\nfrom guidedgen.runs import config\n"
        "def main(cfg):\n    OmegaConf.resolve(cfg)\n    print('minutes', config.published(cfg)['minutes'])\n"
        "hydra.main(version_base='1.3', config_path=str(config.CONF), config_name='config')(main)()"
    )
    (tmp_path / "main.py").write_text(code)
    overrides = ["experiment=codex/compress", "row=codex/zero_50", "device=cpu", "dtype=float32"]
    done = subprocess.run(
        [sys.executable, "main.py", *flags, *overrides], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(config.CONF.parent)},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert "minutes 45.4\n" in done.stdout, done.stderr


@pytest.mark.skipif(not (WEIGHTS / "generator" / "model_index.json").exists(), reason="the lab's weights are missing")
def test_a_run_says_which_row_it_is_and_what_is_printed_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published figures themselves need Stable Diffusion; style scorers are given the tasks' references."""
    printed = {"source": "a thesis", "i_gram": 46.35}
    monkeypatch.setattr(config, "published", lambda cfg: printed if cfg.table.row == "sdedit" else {})
    small = [
        "dataset.prompts.limit=1",
        "samples_per_prompt=1",
        "table.num_steps=3",
        "reference=none",
        "tracker=none",
        "dtype=float32",
    ]
    judged = ["metrics=none", "+metrics.scorers.style_gram_vgg16.image=null", "reward=aesthetic"]
    metrics = experiment.run(
        preparation.prepare(overlay("codex/lab/ti2i", "row=codex/sdedit", f"outputs={tmp_path}", *small, *judged))
    )
    assert (metrics["label"], metrics["reward"], metrics["published"]) == ("sdedit", "aesthetic", printed)
    assert 0 < metrics["scores"]["style_gram_vgg16"]["value"] <= 1
    (file,) = tmp_path.glob("codex_lab_ti2i/*/metrics.json")
    assert json.loads(file.read_text()) == metrics
    assert "| sdedit |" in tables.study_table(file.parent.parent)


def test_a_table_s_keys_are_no_part_of_a_run_s_identity() -> None:
    one, other = overlay("codex/lab/aesthetic"), overlay("codex/lab/aesthetic", "table.name=other", "table.universal_strength=1")
    assert config.identity(one) == config.identity(other)
    assert config.identity(one) != config.identity(overlay("codex/lab/aesthetic", "table.strength=0.3"))


def test_a_wrong_row_of_a_sweep_is_found_before_the_first_is_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        command_line.preflight(["-m", "experiment=codex/lab/aesthetic", "table.schedule=[0]", "device=cpu"], preparation.prepare)
    assert left.value.code == 2
    assert "method.num_particles=" in capsys.readouterr().err

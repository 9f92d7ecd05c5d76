"""What a sweep's values stand for, run by run, and what a run is worth."""

import math
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from guidedgen.basics.errors import UsageError
from guidedgen.cli import command_line
from guidedgen.lab.networks import WEIGHTS
from guidedgen.runs import composition, config, objective, options, preparation
from guidedgen.studies import sweeps

trained = pytest.mark.skipif(not (WEIGHTS / "generator" / "model_index.json").exists(), reason="the lab's weights are missing")


def overrides(*given: str) -> list[list[str]]:
    return [run.overrides for run in sweeps.runs(given)]


def test_every_combination_is_a_run_in_hydra_s_order() -> None:
    assert overrides("method=base,code", "tracker=none", "seed=range(0,3)") == [
        [f"method={method}", "tracker=none", f"seed={seed}"] for method in ("base", "code") for seed in range(3)
    ]


def test_text_and_lists_are_not_taken_apart() -> None:
    """Nor is a key looked for that only some of the runs have."""
    text, two = 'dataset.prompt="a red circle, and a square"', "table.schedule=[2,4],[4,4]"
    assert overrides(text, two) == [[text, "table.schedule=[2,4]"], [text, "table.schedule=[4,4]"]]


def test_an_experiment_s_own_rows_are_swept_unless_the_command_names_some() -> None:
    rows = OmegaConf.load(config.CONF / "experiment/codex/lab/aesthetic.yaml").hydra.sweeper.params.row.split(",")
    assert len(rows) == 16
    found = overrides("experiment=codex/lab/aesthetic", "seed=1,2")
    assert found == [[f"row={row}", "experiment=codex/lab/aesthetic", f"seed={seed}"] for row in rows for seed in (1, 2)]
    assert overrides("experiment=codex/lab/aesthetic", "row=codex/base") == [["row=codex/base", "experiment=codex/lab/aesthetic"]]


def test_how_runs_are_made_is_no_part_of_them() -> None:
    assert overrides("hydra.launcher.partition=gpu", "hydra/launcher=slurm", "hydra.launcher.gres=gpu:1", "seed=1") == [["seed=1"]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["method.strength=interval(0,1)"], r"method\.strength=interval\(0,1\): no list of values; give one"),
        (["seed=1", "method=(("], "cannot be read as key=value"),
        (["experiment=codex/lab/aestetic"], "codex/lab/aestetic"),
        (["sed=1,2", "hydra.sweeper.paras=1"], "hydra.sweeper.paras"),
    ],
)
def test_what_is_no_list_of_runs_is_refused(given: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sweeps.runs(given)


@pytest.mark.parametrize(
    "given",
    [
        ["method=codex", "method.num_particles=[2,4]", "seed=3", "tracker=none", "reward=multi", "reward.weights={pickscore: 2}"],
        ["experiment=codex/lab/ti2i", "row=codex/sdedit", "dataset@dataset.prompts=animals", "dataset.prompts.limit=2"],
        ["experiment=doodl/lab/text", "method/gradients=backprop", "dataset.limit=null", "+run.more=1", "~tracker"],
        [
            "experiment=referee/compbench",
            "row=referee/full",
            "model=lab",
            "zoo=lab",
            "metrics=lab",
            "dtype=float32",
            "table.copies=10",
        ],
        ["experiment=adjoint/stylise", "dataset@method.prompts.prompts=lab", "dataset.images=['lab:night']", "device=cpu"],
    ],
)
def test_a_run_is_composed_as_hydra_composes_it(given: list[str]) -> None:
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        expected = compose("config", overrides=given)
    for _ in range(2):  # the second time from what is kept of the first, which must not have changed
        assert composition.composed(given) == expected


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What Hydra has composed from files since the test began."""
    import hydra

    calls = []

    def counted(*arguments: object, overrides: list[str], **options: object) -> DictConfig:
        calls.append(overrides)
        return compose(*arguments, overrides=overrides, **options)

    monkeypatch.setattr(hydra, "compose", counted)
    composition.composed_options.cache_clear(), composition._compose_whole.cache_clear()
    return calls


def test_files_are_read_once_for_runs_that_differ_by_values(readings: list[list[str]]) -> None:
    for run in sweeps.runs(["method=base,code", "seed=range(0,20)", "tracker=none"]):
        assert composition.composed(run.overrides).seed == int(run.overrides[1].removeprefix("seed="))
    assert len(readings) == 1 + 2  # for the sweep, and each method


def test_files_are_read_once_where_every_value_is_checked(readings: list[list[str]]) -> None:
    checked = []
    sweep = ["-m", "method=base,code", "seed=range(0,20)", "tracker=none", "hydra.sweeper.max_batch_size=5"]
    command_line.preflight(sweep, lambda cfg: checked.append((cfg.method._target_.split(".")[-2], cfg.seed)))
    assert checked == [("base", 0), ("code", 0), *(("base", seed) for seed in range(1, 20))]
    assert len(readings) == 1 + 1 + 2  # for Hydra's own settings, for the sweep, and each method


def test_options_that_do_not_go_together_are_found_before_the_first_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Each of them goes with the others' first."""
    with pytest.raises(SystemExit) as left:
        command_line.preflight(["-m", "method=code,mpgd", "seed=0,1", "reward=aesthetic,compressibility"], preparation.prepare)
    assert left.value.code == 2
    assert "reward=compressibility has no gradient and method=mpgd needs one" in capsys.readouterr().err


def test_a_checked_sweep_is_listed_without_reading_files_again(readings: list[list[str]]) -> None:
    sweep = ["method=base,code", "seed=0,1"]
    command_line.preflight(["-m", *sweep], lambda cfg: None)
    read = len(readings)
    assert [composition.composed(run.overrides).seed for run in sweeps.listed(sweep)] == [0, 1, 0, 1]
    assert len(readings) == read == 1 + 2


@trained
def test_a_run_s_folder_is_the_one_it_will_write_to(tmp_path: Path) -> None:
    found = [run.folder for run in sweeps.runs([f"outputs={tmp_path}", "study=s", "method=base,code", "seed=0,1", "tracker=none"])]
    assert len(set(found)) == 4
    assert [folder.name.split("-")[:2] for folder in found] == [["base", "none"]] * 2 + [["code", "aesthetic"]] * 2
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        cfg = compose("config", overrides=[f"outputs={tmp_path}", "study=s", "method=code", "seed=1", "tracker=none"])
    assert found[3] == preparation.prepare(cfg).folder.path


SWEEPS = [
    ["method=base,code", "seed=0,1", "model.guidance_scale=2,2.0,3"],
    ["method=code,codex", "method.num_particles=2,3", "samples_per_prompt=1,2"],
    ["experiment=codex/lab/aesthetic", "seed=0,1"],
    ["experiment=codex/lab/aesthetic", "row=codex/greedy", "table.strength=0.1,0.2"],  # which others refer to
    ["dataset.category=colour,shape", "dataset.limit=1,2,null"],
    ["dataset=text", "dataset.path=a.txt,b.txt", "seed=0,1"],
    ["dataset=prompt", "dataset.prompt='a, b',c"],
    ["dataset=prompt", "dataset.prompt='a ${seed}',c", "seed=0,1"],
    ["dtype=float32,bfloat16", "device=auto,cpu", "seed=0,1"],
    ["reward=multi", "reward.weights.pickscore=0,1"],
    ["reward=evasion", "run.show_flagged=true,false"],
    ["zoo.clip.name=lab-guide,lab-preference"],
    ["study=s,t", "model.name=a,b"],
    ["method=codex", "method.num_particles=[2,4],[4,4]", "batch_size=1,2", "+run.more=1,2", "~tracker"],
]


@trained
@pytest.mark.parametrize("given", SWEEPS, ids=" ".join)
def test_the_folders_of_a_sweep_are_those_of_its_runs(given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much of what they share is composed and built once."""
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("a red circle\n")
    Path("b.txt").write_text("a blue square\n")
    try:
        runs = sweeps.runs(given)
        expected = [run.folder for run in runs]
    except UsageError as error:
        pytest.fail(str(error))
    assert sweeps.folders(runs) == expected


@trained
def test_a_sweep_over_seeds_is_planned_at_the_cost_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"_prepare": 0, "settled": 0}

    def counted(module: ModuleType, name: str) -> None:
        called = getattr(module, name)

        def count(*arguments: object, **named: object) -> object:
            calls[name] += 1
            return called(*arguments, **named)

        monkeypatch.setattr(module, name, count)

    counted(preparation, "_prepare")
    counted(options, "settled")
    sweep = [f"outputs={tmp_path}", "tracker=none", "method=base,code,codex", "seed=range(0,10)"]
    command_line.preflight(["-m", *sweep], preparation.prepare)
    assert calls["_prepare"] == 5  # each method, and for two of them the unguided run
    calls["settled"] = 0
    assert len(set(sweeps.folders(sweeps.runs(sweep)))) == 30
    assert calls["settled"] == 3


@pytest.mark.parametrize("seeds", ["0,1,-1", "0,1,x", "0,1.5", "0,null"])
def test_every_value_is_checked_all_the_same(seeds: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        command_line.preflight(["-m", f"outputs={tmp_path}", "tracker=none", f"seed={seeds}"], preparation.prepare)
    assert left.value.code == 2 and "guidedgen: seed=" in capsys.readouterr().err


# What a run is worth

METRICS = {
    "scores": {"aesthetic": {"value": 6.5}, "taste": {"value": None}},
    "distances": {"cmmd": {"value": 0.4}, "fid": {"value": 3}},
}


def job(**run: object) -> SimpleNamespace:
    names = {"scorers": {"aesthetic": None, "taste": None}, "distances": {"cmmd": None, "fid": None}}
    return SimpleNamespace(cfg=OmegaConf.create({"run": {"objective_limit": None, **run}}), **names)


@pytest.mark.parametrize(
    ("name", "limit", "worth"),
    [
        ("scores.aesthetic.value", None, 6.5),
        ("-distances.fid.value", None, -3),
        ("scores.aesthetic.value", {"distances.cmmd.value": 0.4, "distances.fid.value": 5}, 6.5),
        ("scores.aesthetic.value", {"distances.cmmd.value": 0.39, "distances.fid.value": 5}, -math.inf),
        ("-distances.fid.value", {"distances.cmmd.value": 0.39}, -math.inf),
        ("scores.taste.value", None, -math.inf),  # not measured
        ("scores.aesthetic.value", {"scores.taste.value": 1}, -math.inf),
        (None, None, None),
    ],
)
def test_the_worth_of_a_run(name: str | None, limit: dict[str, float] | None, worth: float | None) -> None:
    assert objective.of(job(objective=name, objective_limit=limit), METRICS) == worth


def test_a_share_of_a_run_is_worth_nothing_yet() -> None:
    assert objective.of(job(objective="scores.aesthetic.value"), {}) is None


@pytest.mark.parametrize(
    "run", [{"objective": "scores.astetic.value"}, {"objective": "cost.nfe", "objective_limit": {"distances.cmd.value": 1}}]
)
def test_a_number_that_will_not_be_measured_is_refused_before_the_run(run: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"there is no .*did you mean .*choose from scores\.aesthetic\.value, "):
        objective.check(job(**run))
    objective.check(job(objective="-scores.aesthetic.low", objective_limit={"cost.nfe": 1}))


def test_a_number_that_is_not_there_is_reported() -> None:
    with pytest.raises(UsageError, match=r"no scores\.aesthetic\.vlaue in metrics\.json; did you mean value\?"):
        objective.of(job(objective="scores.aesthetic.vlaue"), METRICS)

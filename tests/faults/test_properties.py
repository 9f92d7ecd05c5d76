"""What every command line is held to, tried on thousands of generated ones: an exit code of the contract, at most two lines
on stderr, no traceback, and nothing written but below `outputs`.

`GUIDEDGEN_EXAMPLES=3000 python -m pytest -n 0 tests/faults/test_properties.py` is the longer run, with other examples each time.
"""

import contextlib
import functools
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guidedgen.cli import command_line, usage
from guidedgen.lab.networks import WEIGHTS
from guidedgen.runs import composition, config, objective, preparation
from guidedgen.studies import status, sweeps

LONGER = int(os.environ.get("GUIDEDGEN_EXAMPLES", "0"))
EXAMPLES = LONGER or 400
CODES = {0, 1, 2, 75, 130}
pytestmark = pytest.mark.skipif(not (WEIGHTS / "generator" / "model_index.json").exists(), reason="the lab's weights are missing")
held = settings(max_examples=EXAMPLES, derandomize=not LONGER, database=None, deadline=None, print_blob=True,
                suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large])  # fmt: skip

# What is chosen before values are changed: together every kind of node.
CHOICES = [
    [], ["method=codex"], ["method=doodl", "scheduler=ddim"], ["method=base", "metrics=lab"], ["method=adjoint_tuning", "scheduler=ddim"],
    ["reward=multi"], ["method=blip_inversion"], ["method=sdedit", "dataset=image_to_image", "dataset.images=[lab:night]"],
    ["dataset=text", "dataset.path=prompts.txt"], ["dataset=prompt", "dataset.prompt=circle", "method=best_of_n"],
    ["metrics=lab_compbench", "method=base"], ["method=adjoint_dpm", "scheduler=ddim"], ["reward=clip_image", "method=freedom"],
    ["experiment=codex/lab/aesthetic", "row=codex/greedy"], ["method=universal", "reward=style_gram_clip", "reward.image=lab:night"],
    ["reward=compressibility", "tracker=wandb"], ["reward=evasion_classifier"], ["dataset=templated"], ["method=mpgd", "reward=vqa"],
]  # fmt: skip
NASTY = [
    "nan", "inf", "-inf", "1e400", "-1e400", "-0.0", "0", "-1", "1", "2", "0.5", "1000000000", "1000000000000", "9223372036854775807",
    "9223372036854775808", "1" + "0" * 400, "1e-320", "null", "true", "false", "''", "'\"\"'", "[]", "{}", "[1]", "[nan]", "[1,-1]",
    "[[1]]", "{a:1}", "{a:nan}", "[null]", "[0.7,0.2]", "[0.2,0.7]", "???", "'???'", "${seed}", "'${seed}'", "${study}",
    "'${oc.env:NOPE}'", "'${oc.env:NOPE,null}'", "'${nope}'", "'${nope:1}'", "'${method}'", "'${'", "'$'", "a", "auto", "none", "base",
    "lab", "../../x", "/proc/1/x", "/dev/null", "prompts.txt", "a/b", "...", ".", "~", "~nobody/x", "x" * 300, "x" * 30000, "é", "'\u202e'",
    "'a\nb'", "'a\tb'", "'\x1b[31m'", "'\x00'", "'\udcff'", "'%s {0} `x`'", "a,b", "1,2", "range(0,0)", "range(0,2)", "range(1,1e9)",
    "interval(0,1)", "choice(1,2)", "glob(*)", "tag(log,interval(1,2))", "sort(1,2)", "int(1.5)", "float(nan)", "{_target_: os.system}",
    "{_target_: guidedgen.models.tuning.save_file, filename: evil}", "[{_target_: os.system}]", "os.system", "meta", "cuda:99", "mps", "xla",
    "float8", "(", "[", "{", "\\", "'", '"', "=", "a=b", "a:b", "[" * 25 + "]" * 25, "[" * 500 + "]" * 500, "${a:" * 40, "${" * 300,
    "0x10", "1_000", "1e3", "007", "--help", "*", "&a", "!!python/object:os.system", "<<", "@x",
]  # fmt: skip
FLAGS = [
    "-m", "--multirun", "--cfg", "--cfg=job", "--cfg=all", "-c", "job", "hydra", "--help", "-h", "--resolve", "--package", "-p", "method",
    "--package=method", "--package=nothing", "--info", "--info=all", "-i", "plugins", "--experimental-rerun", "--experimental-rerun=x.pickle",
    "--experimental-re=x", "--config-path=/tmp", "-cp", "/", "--config-name=x", "--config-n=x", "-cn", "--config-dir", "--config-dir=.",
    "--config-dir=own", "--config-dir=/proc", "--config-dir=prompts.txt", "-cd", "--run", "-r", "--shell-completion", "-sc", "install=x",
    "query=bash", "--", "-", "--x", "-x", "--hydra-help", "-mr", "-mh", "-mcjob", "--cfg=x", "seed=1", "seed=1,2", "method=base,code",
    "hydra/launcher=slurm", "hydra/launcher=none", "hydra/sweeper=optuna_maximize", "hydra/sweeper=basic", "hydra.launcher.partition=x",
    "hydra.sweeper.n_trials=2", "hydra.sweeper.params={seed:'1,2'}", "+hydra.sweeper.params.hydra.run.dir=x", "hydra.run.dir=x",
    "hydra.sweeper.params={+hydra.callbacks.a._target_:os.system}", "hydra.sweep.dir=x", "hydra.output_subdir=x", "hydra.job_logging=null",
    "+hydra.callbacks.x._target_=os.system", "hydra.launcher._target_=os.system", "hydra.sweeper._target_=os.system",
    "hydra.searchpath=[pkg://os]", "hydra.mode=MULTIRUN", "hydra.verbose=true", "hydra.job.chdir=true", "hydra={}", "hydra=null",
    "hydra/job_logging=default", "hydra/help=default", "method@hydra.callbacks.a=base", "hydra/launcher@x=slurm", "~hydra", "~hydra.run",
    "~seed", "~shard.count", "~method", "~method.num_particles", "~method._target_", "~run", "~model.name", "~metrics.scorers",
    "~metrics.scorers.taste", "~tracker", "~zoo.clip", "~experiment", "~nothing", "+seed=1", "++seed=1", "+x=1", "+run.x=1", "+method.x=1",
    "+method.x.y.z=1", "++method.num_particles=3", "+metrics.scorers.m={_target_:guidedgen.lab.judge.TasteOracle}",
    "+metrics.scorers.m._target_=guidedgen.lab.judge.TasteOracle", "+metrics.scorers.m=1", "+metrics.x=1", "+zoo.x=1", "+hydra.x=1",
    "reward._target_=mine.Reward", "allow_targets=[mine.]", "allow_targets=mine.", "allow_targets=[os]", "reward.scale=2",
    "+reward.scale=2", "method._target_=mine.Reward", "dataset._target_=mine.Reward", "model._target_=mine.Reward",
    "scheduler._target_=mine.Reward", "tracker._target_=mine.Reward", "dataset@dataset=lab", "dataset@x.y=lab", "experiment=nothing",
    "experiment=own", "experiment=evil", "experiment=bomb", "row=codex/greedy", "table.row=1", "+table={row:1}", "table=1", "=", "a", "a=",
    "=a", "seed", "seed==1", "seed:1", " seed=1", "seed =1", "seed= 1", "SEED=1", "seed.x=1", "seed[0]=1", "run[fresh]=true", "run.fresh.x=1",
    "method/gradients=checkpoint", "method/gradients=x", "method/gradients@method.x=adjoint", "", " ", "\n", "#", "défaut=1",
]  # fmt: skip
ENVIRONMENT = {
    "GUIDEDGEN_MODEL": ["", "lab", "sd15", "nonsense", "lab,sd15", "../x", "lab method=base", "=", "'"],
    "SLURM_STEP_NUM_TASKS": ["", "abc", "0", "-1", "1", "2", "1.5", "9" * 30, "²"],
    "SLURM_PROCID": ["", "abc", "0", "1", "7", "-1"], "SLURM_LOCALID": ["", "x", "0"],
    "SLURM_ARRAY_TASK_ID": ["", "x", "3"], "SLURM_ARRAY_TASK_MIN": ["", "x", "9", "1"],
    "TORCHELASTIC_RUN_ID": ["", "none"], "WORLD_SIZE": ["", "0", "-1", "abc", "1", "4"], "RANK": ["", "x", "3", "9"],
    "LOCAL_RANK": ["", "x", "0"], "WANDB_MODE": ["", "x", "offline"], "COLUMNS": ["", "0", "x", "1", "-5", "99999"],
    "COMP_LINE": ["", "python run.py method=do"], "COMP_POINT": ["", "x", "0"],
}  # fmt: skip
MINE = (
    "class Reward:\n    differentiable = True\n    def __init__(self, scale=1.0): ...\n    def __call__(self, images, tasks): ...\n"
)
QUICK = ["outputs=out", "tracker=none", "reference=none", "metrics=none", "device=cpu"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where one stands: with a file of prompts, a package of the user's own and a folder of options, some of them hostile."""
    here = tmp_path / "outer" / "here"
    own = here / "own" / "experiment"
    own.mkdir(parents=True)
    (here / "prompts.txt").write_text("a red circle\n")
    (here / "mine.py").write_text(MINE)
    overlay = "# @package _global_\n"
    (own / "own.yaml").write_text(overlay + "defaults:\n  - override /method: base\nseed: 3\n")
    (own / "evil.yaml").write_text(overlay + "hydra: {job_logging: {formatters: {a: {(): os.system, fmt: 'touch evil'}}}}\n")
    lines = ["a0: &a0 [x, x]", *(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]" for i in range(20))]
    (here / "bombs" / "experiment").mkdir(parents=True)
    (here / "bombs" / "experiment" / "bomb.yaml").write_text(overlay + "\n".join(lines))
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(str(here))
    return here


def command(arguments: Sequence[str]) -> None:
    """What run.py does before it samples."""
    given = command_line.for_hydra(arguments)
    if command_line.asks_for_help(given):
        print(usage.text(config.CONF, 100))
        return
    command_line.preflight(given, lambda cfg: objective.check(preparation.prepare(cfg)))
    if swept := command_line.swept(given):
        status.summary(status.of_sweep(sweeps.listed(*swept)[:3]))


def files(folder: Path) -> set[Path]:
    """What lies there, outside of the runs."""
    return {
        path
        for path in folder.rglob("*")
        if path.relative_to(folder).parts[:3] != ("outer", "here", "out") and "__pycache__" not in path.parts
    }


def hold(arguments: Sequence[str], folder: Path, tried: Callable[..., None]) -> None:
    """Asserts the contract of one command line."""
    before = files(folder.parent.parent)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            command(arguments)
            code: Any = 0
        except SystemExit as left:
            code = left.code or 0
    printed = err.getvalue()
    assert code in CODES, (code, printed)
    assert printed.count("\n") <= 2 and "Traceback" not in printed, printed
    assert (code == 0) or printed.startswith("guidedgen: "), printed
    assert len(printed) < 3000, printed[:3000]
    assert files(folder.parent.parent) == before
    tried("refused" if code else "used")


@functools.lru_cache
def keys(number: int) -> list[str]:
    """Of a composed choice, inner ones too."""
    cfg = composition.composed([*QUICK, *CHOICES[number]])
    return [key for key in composition.keys(cfg) if key != "outputs"]


@contextlib.contextmanager
def surroundings(values: dict[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value) if value else patch.delenv(name, raising=False)
        yield


values = st.one_of(
    st.sampled_from(NASTY), st.integers().map(str), st.floats().map(repr), st.text(max_size=20),
    st.lists(st.one_of(st.integers(-3, 3), st.floats(-2, 2)), max_size=4).map(lambda found: str(found).replace(" ", "")),
)  # fmt: skip
changes = st.integers(0, len(CHOICES) - 1).flatmap(
    lambda number: st.tuples(
        st.just(CHOICES[number]),
        st.lists(
            st.tuples(st.sampled_from(["", "", "", "", "+", "++", "~"]), st.sampled_from(keys(number)), values),
            min_size=1,
            max_size=2,
        ),
    )
)


@held
@given(change=changes, sweep=st.sampled_from([[], [], [], ["-m"]]))
def test_values_of_any_kind_at_every_option(change: Any, sweep: list[str], folder: Path, tried: Callable[..., None]) -> None:
    choice, overrides = change
    given = [f"{sign}{key}" if sign == "~" else f"{sign}{key}={value}" for sign, key, value in overrides]
    hold([*sweep, *QUICK, *choice, *given], folder, tried)


@held
@given(
    given=st.lists(st.one_of(st.sampled_from(FLAGS), st.text(max_size=12)), max_size=4),
    environment=st.fixed_dictionaries({}, optional={name: st.sampled_from(found) for name, found in ENVIRONMENT.items()}),
)
def test_flags_and_surroundings_of_any_kind(
    given: list[str], environment: dict[str, str], folder: Path, tried: Callable[..., None]
) -> None:
    with surroundings({**dict.fromkeys(ENVIRONMENT, ""), **environment}):
        hold([*QUICK, *given], folder, tried)


@pytest.mark.parametrize("flag", FLAGS)
def test_every_flag_alone(flag: str, folder: Path, tried: Callable[..., None]) -> None:
    hold([flag, *QUICK], folder, tried)


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_every_variable_alone(name: str, folder: Path, tried: Callable[..., None]) -> None:
    for value in ENVIRONMENT[name]:
        with surroundings({**dict.fromkeys(ENVIRONMENT, ""), name: value}):
            hold(QUICK, folder, tried)


def test_what_a_folder_of_options_may_bring(folder: Path, tried: Callable[..., None]) -> None:
    """An overlay of one's own is used; one that sets what Hydra logs by, or grows without end, is refused at once."""
    hold([*QUICK, "--config-dir=own", "experiment=own"], folder, tried)
    for options, name in (("own", "evil"), ("bombs", "bomb")):
        with pytest.raises(SystemExit) as left, contextlib.redirect_stderr(err := io.StringIO()):
            command([*QUICK, f"--config-dir={options}", f"experiment={name}"])
        assert left.value.code == 2 and err.getvalue().count("\n") == 1, err.getvalue()
        tried("refused")
    assert not (folder / "evil").exists() and sys.getrecursionlimit() >= 1000

"""What a user types: wrong commands end in one line and exit code 2 before anything is loaded; help is fast and light."""

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import processes
import pytest
from omegaconf import DictConfig, OmegaConf

from guidedgen.basics.errors import UsageError
from guidedgen.cli import command_line, usage
from guidedgen.runs import composition, config, preparation
from guidedgen.runs.job import Job
from guidedgen.runs.store import RunFolder
from guidedgen.studies import sweeps

ROOT = Path(__file__).resolve().parent.parent


def command(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python run.py ...` as a user runs it."""
    return processes.run("run.py", *arguments, cwd=cwd, **environment)


# What is typed, and what the one line has to hold.
WRONG = {
    "unknown method": (["method=cod"], ["method=cod", "did you mean code?", "best_of_n"]),
    "unknown reward": (["reward=astetic"], ["reward=astetic", "did you mean aesthetic?"]),
    "unknown dataset": (["dataset=drawing"], ["dataset=drawing", "choose from", "animals"]),
    "unknown scheduler": (["scheduler=ddmp"], ["scheduler=ddmp", "ddpm"]),
    "unknown model": (["model=sd16"], ["model=sd16", "did you mean sd"]),
    "typo in a group": (["metod=code"], ["metod", "did you mean method?"]),
    "typo in a top-level key": (["sed=1"], ["'sed'", "did you mean seed?"]),
    "another word for a key": (["method=doodl", "iterations=4"], ["'iterations'", "did you mean method.num_updates?"]),
    "another word inside a node": (["method=blip_inversion", "method.num_copies=4"], ["did you mean method.augmentations.count?"]),
    "another program's word": (["num_inference_steps=4"], ["did you mean scheduler.num_steps?"]),
    "another word for a group": (["sampler=ddim"], ["'sampler'", "did you mean scheduler?"]),
    "typo in a nested key": (["method.num_particle=3"], ["num_particle", "did you mean method.num_particles?"]),
    "key of another method": (["method=base", "method.block_size=3"], ["method.block_size"]),
    "key added with a plus": (["+method.lr=0.1"], ["method.lr"]),
    "negative steps": (["scheduler.num_steps=-5"], ["scheduler.num_steps=-5", "at least 1"]),
    "no steps": (["scheduler.num_steps=0"], ["scheduler.num_steps=0", "at least 1"]),
    "more steps than trained": (["scheduler.num_steps=1001"], ["scheduler.num_steps=1001", "1000"]),
    "steps that are no number": (["scheduler.num_steps=many"], ["scheduler.num_steps=many", "expected int"]),
    "fraction where a whole number goes": (["method.block_size=2.5"], ["method.block_size=2.5", "expected int"]),
    "no particles": (["method.num_particles=0"], ["method.num_particles=0", "at least 1"]),
    "wrong choice": (["scheduler.spacing=trailling"], ["scheduler.spacing=trailling", "did you mean trailing?"]),
    "eta out of range": (["scheduler=ddim", "scheduler.eta=2"], ["scheduler.eta=2", "from 0 to 1"]),
    "no samples": (["samples_per_prompt=0"], ["samples_per_prompt=0", "at least 1"]),
    "empty batch": (["batch_size=0"], ["batch_size=0", "at least 1"]),
    "negative seed": (["seed=-1"], ["seed=-1", "at least 0"]),
    "seed that is no number": (["seed=abc"], ["seed=abc", "whole number"]),
    "device that is not there": (["device=cuda:7"], ["device=cuda:7", "choose from"]),
    "device that does not exist": (["device=abacus"], ["device=abacus", "choose from"]),
    "unknown dtype": (["dtype=float8"], ["float8", "float16"]),
    "deterministic scheduler": (["scheduler=ddim"], ["method=code", "scheduler.eta=1"]),
    "deterministic scheduler for CoDeX": (["method=codex", "scheduler=ddim"], ["method=codex", "scheduler.eta=1"]),
    "gradient of a file size": (["method=mpgd", "reward=compressibility"], ["reward=compressibility", "method=mpgd", "zero_order"]),
    "window upside down": (["method=codex", "method.window=[0.3,0.6]"], ["method.window=[0.3, 0.6]", "1 >= start >= end >= 0"]),
    "window of one edge": (["method=freedom", "method.window=[0.3]"], ["method.window=[0.3]", "[start, end]"]),
    "window that is no list": (["method=mpgd", "method.window=0.3"], ["method.window=0.3", "got float"]),
    "schedule with an empty segment": (
        ["method=codex", "method.num_particles=[4,0]"],
        ["method.num_particles=[4, 0]", "at least 1"],
    ),
    "no temperature": (["method=codex", "method.temperature=0"], ["method.temperature=0", "above 0"]),
    "more at least than at most": (["method=codex", "method.min_particles=5"], ["method.min_particles=5", "from 1 to"]),
    "gradient through something": (["method=codex", "method.through=vae"], ["method.through=vae", "unet, decoder"]),
    "no repeats": (["method=universal", "method.num_repeats=0"], ["method.num_repeats=0", "at least 1"]),
    "noise for a deterministic chain": (["method=doodl", "scheduler=ddpm"], ["method=doodl", "scheduler=ddim scheduler.eta=0"]),
    "engine that there is not": (
        ["method=doodl", "method/gradients=chekpoint"],
        ["method/gradients=chekpoint", "did you mean checkpoint?"],
    ),
    "chain that cannot be undone": (
        ["method=doodl", "scheduler=ddim", "method.process=ddim", "method/gradients=reversible"],
        ["method.process=ddim", "reversible needs edict"],
    ),
    "flow of a pair": (
        ["method=doodl", "method.process=edict", "method/gradients=adjoint"],
        ["method.process=edict", "adjoint needs ddim"],
    ),
    "picture that is not there": (
        ["method=doodl", "method.process=edict", "method.source_image=none.png", "method.tied=false"],
        ["method.source_image=none.png", "cannot be read as an image"],
    ),
    "picture for a single latent": (
        ["method=doodl", "scheduler=ddim", "method.source_image=a.png"],
        ["method.source_image", "tied=false"],
    ),
    "a flow in time to where it is infinitely fast": (
        ["method=adjoint_dpm", "scheduler=ddim", "method.reparameterise=false", "scheduler.end=clean"],
        ["method=adjoint_dpm", "scheduler.end=first"],
    ),
    "a new word that is an old one": (
        ["method=adjoint_tuning", "scheduler=ddim", "method.what=token", "method.token=circle"],
        ["method.token=circle", "knows this word"],
    ),
    "a 16-bit network tuned": (
        ["method=adjoint_tuning", "scheduler=ddim", "method.what=weights", "dtype=bfloat16"],
        ["dtype=bfloat16", "float32"],
    ),
    "a picture that two keys need": (
        ["experiment=adjoint/stylise", "model=lab", "dataset.prompts.path=p.txt"],
        ["dataset.images: missing; give it as dataset.images=..."],
    ),
    "negative updates": (
        ["method=adjoint_dpm", "scheduler=ddim", "method.num_updates=-1"],
        ["method.num_updates=-1", "at least 0"],
    ),
    "nothing to start from": (["method=sdedit", "dataset=lab"], ["method=sdedit", "dataset=image_to_image"]),
    "no reward to follow": (["reward=none"], ["method=code", "reward=aesthetic"]),
    "missing weights offline": (
        ["model.path=org/none", "zoo=lab"],
        ["model.path=org/none", "offline", "scripts/fetch.py org/none"],
    ),
    "folder without a model": (["model.path=."], ["model.path=.", "unet"]),
    "path that is not there": (["model.path=./nowhere"], ["model.path=./nowhere", "no such path"]),
    "missing prompt file": (["dataset=text", "dataset.path=none.txt"], ["dataset.path=none.txt", "No such file"]),
    "prompt file not named": (["dataset=text"], ["dataset.path", "missing"]),
    "empty prompt file": (["dataset=text", "dataset.path=empty.txt"], ["dataset.path=empty.txt", "no prompt"]),
    "prompt file not UTF-8": (["dataset=text", "dataset.path=latin.txt"], ["dataset.path=latin.txt", "UTF-8"]),
    "empty prompt": (["dataset=prompt", "dataset.prompt=''"], ["dataset.prompt", "empty"]),
    "prompt with too few quotes": (["dataset=prompt", "dataset.prompt=a circle, red"], ["dataset.prompt", "quotes"]),
    "prompt of 500 words": (["dataset=prompt", f"dataset.prompt={'red ' * 500}"], ["500", "model.truncate_prompts=true"]),
    "unknown category": (["dataset.category=color"], ["dataset.category=color", "did you mean colour?"]),
    "limit of nothing": (["dataset.limit=0"], ["dataset.limit=0", "at least 1"]),
    "folder that cannot be written": (["outputs=/proc/nowhere"], ["outputs=/proc/nowhere", "another folder"]),
    "outputs below a file": (["outputs=empty.txt/x"], ["outputs=empty.txt", "another folder"]),
    "study that leaves outputs": (["study=../up"], ["study=../up", "plain folder name"]),
    "reference that is not there": (["reference=nowhere"], ["reference=nowhere", "base, none"]),
    "unreadable image": (["reference=broken"], ["reference=broken", "bad.png", "not a readable image"]),
    "reference without images": (["reference=hollow"], ["reference=hollow", "no image"]),
    "target of a stranger": (["method._target_=os.system"], ["method._target_=os.system", "allow_targets"]),
    "target that does not exist": (["method._target_=guidedgen.methods.nothing.No"], ["guidedgen.methods.nothing"]),
    "images not named": (["dataset=image_to_image"], ["dataset.images", "missing"]),
    "image that is not there": (["dataset=image_to_image", "dataset.images=[a.png]"], ["dataset.images=a.png", "No such file"]),
    "image that is none": (["dataset=image_to_image", "dataset.images=[broken/bad.png]"], ["dataset.images=broken/bad.png"]),
    "images that are numbers": (["dataset=image_to_image", "dataset.images=[1]"], ["dataset.images=[1]", "expected list[str]"]),
    "noise ratio out of range": (
        ["dataset=image_to_image", "dataset.images=[lab:night]", "dataset.noise_ratio=1.5"],
        ["dataset.noise_ratio=1.5", "at most 1"],
    ),
    "limit of the prompts inside": (
        ["dataset=image_to_image", "dataset.images=[lab:night]", "dataset.prompts.limit=0"],
        ["dataset.prompts.limit=0", "at least 1"],
    ),
    "prompts of another kind inside": (
        ["dataset=image_to_image", "dataset.images=[lab:night]", "dataset@dataset.prompts=animal"],
        ["dataset=animal", "did you mean animals?"],
    ),
    "JSONL that is text": (["dataset=jsonl", "dataset.path=latin.txt"], ["dataset.path=latin.txt", "UTF-8"]),
    "HPDv2 without its file": (["dataset=hpdv2"], ["dataset.path=null", "hps_v2_all_eval.txt"]),
    "unknown table": (["experiment=codex/aestetic"], ["experiment=codex/aestetic", "did you mean codex/aesthetic?"]),
    "unknown row": (["experiment=codex/lab/aesthetic", "row=codex/gredy"], ["row=codex/gredy", "did you mean codex/greedy?"]),
    "row by its last part": (["experiment=referee/lab/compbench", "row=full"], ["row=full", "did you mean referee/full?"]),
    "another data set for an experiment": (
        ["experiment=referee/lab/compbench", "dataset=prompt", "dataset.prompt=circle"],
        ["dataset.category", "no such option", "'~dataset.category' leaves it out"],
    ),
    "a prompt that is a number": (["dataset=prompt", "dataset.prompt=12"], ["dataset.prompt=12", """'dataset.prompt="12"'"""]),
    "one number where a list goes": (["method=blip_inversion", "method.lr=1"], ["method.lr=1", "expected list[float]"]),
    "row without its table": (["row=codex/greedy"], ["row=codex/greedy", "experiment=codex/aesthetic"]),
    "row of another table": (
        ["experiment=referee/lab/compbench", "row=codex/kmeans"],
        ["row=kmeans", "experiment=referee/lab/compbench", "table.schedule"],
    ),
    "two sweeps in one": (
        ["-m", "experiment=referee/lab/balance,referee/lab/noise"],
        ["referee/lab/balance is a sweep of its own", "one after the other"],
    ),
    "nothing of a group": (["method=null"], ["method=null", "choose from"]),
    "no metrics": (["metrics.scorers=null"], ["metrics.scorers=null", "metrics.scorers.clip_score"]),
    "a metric that is a number": (["metrics.scorers.taste=5"], ["metrics.scorers.taste=5", "null for none"]),
    "a key that every run has": (["~seed"], ["~seed", "cannot be left out"]),
    "a node that every run has": (["run=null"], ["run=null", "run.fresh"]),
    "no reference": (["reference=null"], ["reference=None", "base, none"]),
    "no study": (["study=null"], ["study=None", "plain folder name"]),
    "outputs nowhere": (["outputs="], ["outputs=", "expected a folder"]),
    "a prompt that refers to a key": (["dataset=prompt", 'dataset.prompt="a ${b}"'], ["${b}", "dataset=text"]),
    "typo where a config is only shown": (["methd=x", "--cfg", "job"], ["'methd'", "did you mean method?"]),
    "a referee that is shunned": (["method=blip_inversion", "method.weight=-1"], ["method.weight=-1", "at least 0"]),
    "no copies": (["method=blip_inversion", "method.augmentations=null"], ["method.augmentations"]),
    "row that the reward cannot have": (
        ["experiment=codex/lab/compress", "row=codex/mpgd"],
        ["reward=compressibility", "method=mpgd"],
    ),
    "sweep without -m": (["seed=1,2"], ["seed=1,2", "-m"]),
    "wrong value inside a sweep": (["-m", "method=base,cod"], ["method=cod", "did you mean code?"]),
    "unknown flag": (["--fresh"], ["--fresh"]),
    "not an override": (["code"], ["code"]),
    "switch that is no switch": (["run.fresh=maybe"], ["run.fresh=maybe", "true or false"]),
    "tracker mode": (["tracker.mode=onlin"], ["tracker.mode=onlin", "did you mean online?"]),
    "a stored job's code": (["--experimental-rerun=job.pickle"], ["--experimental-rerun", "the same command again resumes"]),
    "the same, cut short": (["--experimental-re=job.pickle"], ["--experimental-re"]),
    "another folder of configs": (["--config-path=/tmp"], ["--config-path", "--config-dir"]),
    "another main config": (["--config-name", "other"], ["--config-name", "experiment="]),
    "a folder of options with none": (["--config-dir=hollow"], ["--config-dir", "hollow", "method"]),
    "two things at once": (["-m", "--cfg", "job"], ["--multirun and --cfg", "only one"]),
    "a part of nothing": (["--package=method"], ["--package", "--cfg job"]),
    "a part that is not there": (["--cfg=job", "--package=metod"], ["--package=metod", "did you mean method?"]),
    "a value that refers to itself, shown": (["--cfg=job", "--resolve", "seed=${seed}"], ["--cfg=job"]),
    "completion of an unknown shell": (["-sc", "install=ksh"], ["--shell-completion", "install=bash"]),
    "completion asked by nobody": (["-sc", "query=bash"], ["COMP_LINE"]),
    "a launcher of somebody's": (["hydra.launcher._target_=os.system"], ["hydra.launcher._target_", "hydra.launcher.partition"]),
    "a sweeper of somebody's": (["hydra.sweeper._target_=os.system"], ["hydra.sweeper._target_", "may not be set"]),
    "a sampler of somebody's": (
        ["-m", "hydra/sweeper=optuna_maximize", "hydra.sweeper.sampler={_target_: os.system}"],
        ["_target_=os.system", "sampler"],
    ),
    "a callback": (["+hydra.callbacks.a._target_=os.system"], ["+hydra.callbacks.a._target_", "may not be set"]),
    "a node among Hydra's settings": (["method@hydra.callbacks.a=base"], ["may not be set"]),
    "Hydra's own folder": (["hydra.run.dir=/tmp"], ["hydra.run.dir", "may not be set"]),
    "further folders": (["hydra.searchpath=[pkg://os]"], ["hydra.searchpath", "may not be set"]),
    "a sweep in disguise": (["hydra.mode=MULTIRUN"], ["hydra.mode", "may not be set"]),
    "a log of somebody's": (["hydra.job_logging=null"], ["hydra.job_logging", "may not be set"]),
    "a sweep of nothing": (["-m", "seed=range(0,0)"], ["seed=range(0,0)", "no values"]),
    "a sweep without end": (["-m", "seed=range(0,1000000000)"], ["more than 10000"]),
    "a product without end": (["-m", "seed=range(0,1000)", "batch_size=range(1,1000)"], ["999000 runs"]),
    "options by a pattern": (["-m", "method=glob(co*)"], ["name the options"]),
    "an interval for a list": (["-m", "method=codex", "method.strength=interval(0,1)"], ["hydra/sweeper=optuna_maximize"]),
    "a number for a name": (["study=5"], ["study=5", "plain folder name", 'study="5"']),
    "a name of control characters": (["study='a\x1bb'"], ["study", "cannot be printed"]),
    "a name that is too long": (["study=" + "x" * 300], ["study=xxx", "100 bytes"]),
    "a variable that is not set": (["study=${oc.env:NOPE}"], ["study", "NOPE"]),
    "a key that refers to itself": (["seed=${seed}"], ["seed: "]),
    "a limit that is a number": (["run.objective_limit=5"], ["run.objective_limit=5", "distances.cmmd.value: 0.5"]),
    "a limit that is none": (["run.objective_limit={distances.fid.value: nan}"], ["distances.fid.value=nan", "finite"]),
    "an objective that is a number": (["run.objective=5"], ["run.objective=5", "scores.taste.value"]),
    "a share without its count": (["~shard.count"], ["~shard.count", "cannot be left out"]),
    "shares of a new kind": (["shard={kind: 1}"], ["shard.kind"]),
    "no device": (["device=meta"], ["device=meta", "choose from auto, cpu"]),
    "a device of another maker": (["device=mps"], ["device=mps", "choose from"]),
    "a device of a part": (["zoo.clip.device=cuda:99"], ["zoo.clip.device=cuda:99", "choose from"]),
    "a model's name with folders": (["model.name=../../x"], ["model.name=../../x", "plain name"]),
    "no model's name": (["~model.name"], ["model.name"]),
    "letters for packages": (["allow_targets=my_lab."], ["allow_targets=my_lab.", "expected a list"]),
    "Python's own packages": (["allow_targets=[os.]"], ["allow_targets", "os."]),
    "every package": (["allow_targets=['']"], ["allow_targets", "no name of a package"]),
    "a function that a module imports": (
        ["method._target_=guidedgen.models.tuning.save_file"],
        ["method._target_=guidedgen.models.tuning.save_file", "guidedgen.methods"],
    ),
    "a part of the zoo that is none": (["zoo.filter=5"], ["zoo.filter=5"]),
    "a strength that is no number": (["method=mpgd", "method.step_size=nan"], ["method."]),
    "infinite guidance": (["model.guidance_scale=inf"], ["model.guidance_scale=inf", "finite"]),
    "samples beyond all measure": (["samples_per_prompt=1000000000000"], ["samples_per_prompt=1000000000000", "at most 1000000"]),
    "samples of many prompts": (["samples_per_prompt=900000"], ["samples_per_prompt=900000", "1000000 are the most"]),
    "steps beyond all measure": (["scheduler.num_steps=1000000000"], ["scheduler.num_steps=1000000000"]),
    "particles beyond all measure": (["method.num_particles=1000000000"], ["method.num_particles=1000000000", "at most 1000000"]),
    "a seed beyond 64 bits": (["seed=9223372036854775808"], ["seed=9223372036854775808", "at most"]),
    "brackets in brackets": (["+method.x=" + "[" * 600 + "]" * 600], ["method.x", "nested brackets"]),
    "a text without end": (["dataset=prompt", "dataset.prompt=" + "x" * 30000], ["dataset.prompt", "longer than"]),
    "quality of a JPEG": (["reward=compressibility", "reward.quality=500"], ["reward.quality=500"]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to stand in, with the wrong files the commands name."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "empty.txt").write_text("\n \n")
    (folder / "latin.txt").write_bytes(b"caf\xe9\n")
    for name in ("broken", "hollow"):
        (folder / name).mkdir()
    (folder / "broken" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    return folder


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_command_is_one_line(
    case: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tried: Callable[..., None]
) -> None:
    """In this process, for speed: this is all that runs before Hydra's own main."""
    arguments, wanted = WRONG[case]
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as left:
        command_line.preflight(arguments, preparation.prepare)
    assert left.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("guidedgen: ")
    assert printed.err.count("\n") == 1
    assert all(part in printed.err for part in wanted), printed.err
    tried("refused")


@pytest.mark.parametrize("case", ["typo in a nested key", "missing weights offline", "prompt of 500 words", "unknown flag"])
def test_a_wrong_command_leaves_at_once(case: str, folder: Path) -> None:
    """As a process: exit code 2, one line, no traceback, and no network loaded (which would say so in the modules)."""
    arguments, wanted = WRONG[case]
    done = command(*arguments, cwd=folder)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert all(part in done.stderr for part in wanted)
    assert not (folder / "outputs" / "default").exists() or not list((folder / "outputs" / "default").iterdir())


OWN_REWARD = """
import dataclasses
from guidedgen.methods import Needs
from guidedgen.basics.tasks import Task

@dataclasses.dataclass(frozen=True, kw_only=True)
class Reward:
    x: float = 1.0
    differentiable = True
    networks = ()
    def __call__(self, images, tasks):
        return self.x * images.mean((1, 2, 3))

class Other(Reward): ...

@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    twice: int = 1
    needs = Needs(reward=False)
    def __call__(self, problem, observe=None): ...

@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    words: str = "circle"
    def tasks(self):
        return [Task(id="a", prompt=self.words)]
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of the user's own, on the path."""
    name = f"{tmp_path.name[:20]}_lab".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(OWN_REWARD)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def prepared(*given: str, folder: Path) -> list[Job]:
    """The runs that a command line makes, none of which is started."""
    found: list[Job] = []
    quick = [f"outputs={folder / 'outputs'}", "tracker=none", "device=cpu", "reference=none", "metrics=none"]
    line = command_line.for_hydra([*quick, *given])
    command_line.preflight(line, lambda cfg: found.append(preparation.prepare(cfg)))
    return found


@pytest.mark.parametrize("sign", ["", "+", "++"])
def test_classes_of_the_user_s_own_take_their_own_options(sign: str, own: str, tmp_path: Path, tried: Callable[..., None]) -> None:
    """As the README promises, without the options of the default that they replace."""
    allow = f"allow_targets=[{own}.]"
    (job,) = prepared(f"{sign}reward._target_={own}.Reward", f"{sign}reward.x=3", allow, folder=tmp_path)
    assert job.reward is not None and job.reward.x == 3 and job.reward_name == f"{own}_Reward"
    assert job.name.startswith(f"code-{own}_Reward-lab-lab-") and list(job.scorers) == [f"{own}_Reward"]
    (job,) = prepared(f"{sign}method._target_={own}.Method", f"{sign}method.twice=2", allow, folder=tmp_path)
    assert job.method.twice == 2 and job.method_name == f"{own}_Method"
    (job,) = prepared(f"{sign}dataset._target_={own}.Dataset", f"{sign}dataset.words=square", allow, folder=tmp_path)
    assert [sample.task.prompt for sample in job.samples] == ["square"]
    tried("used", 3)


def test_two_rewards_of_one_package_are_distinguished(own: str, tmp_path: Path, tried: Callable[..., None]) -> None:
    """In a sweep as well, whose listed folders are the runs' own."""
    given = [f"reward._target_={own}.Reward,{own}.Other", f"allow_targets=[{own}]", "reward.x=2", "metrics=none", "tracker=none",
             f"outputs={tmp_path / 'outputs'}", "device=cpu", "reference=none"]  # fmt: skip
    first, second = prepared("-m", *given, folder=tmp_path)
    assert (first.reward_name, second.reward_name) == (f"{own}_Reward", f"{own}_Other")
    listed = sweeps.listed(*command_line.swept(command_line.for_hydra(["-m", *given])))
    assert [run.folder for run in listed] == [first.folder.path, second.folder.path]
    tried("used", 2)


@pytest.mark.parametrize(
    "form", ["+metrics.scorers.mine={{_target_: {own}.Other, x: 5}}", "+metrics.scorers.mine._target_={own}.Other"]
)
def test_metrics_are_added_by_a_plus(form: str, own: str, tmp_path: Path, tried: Callable[..., None]) -> None:
    more = [] if "x:" in form else ["+metrics.scorers.mine.x=5"]
    (job,) = prepared("metrics=lab", form.format(own=own), *more, f"allow_targets=[{own}]", folder=tmp_path)
    assert job.scorers["mine"].x == 5 and "taste" in job.scorers
    tried("used")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["reward._target_={own}.Reward"], "add its package to allow_targets"),
        (["reward._target_={own}.Reward", "allow_targets=[{own}.]", "reward.y=1"], "reward.y: {own}.Reward has no such option"),
        (["reward._target_={own}.Method", "allow_targets=[{own}.]"], "takes a Reward; this one has no differentiable"),
        (["reward=aesthetic", "reward._target_={own}.Reward", "allow_targets=[{own}.]"], "'~reward.clip' leaves it out"),
        (["metrics.scorers.mine={{_target_: {own}.Reward}}"], "+metrics.scorers.mine=... adds it"),
        (["+metrics.mine={{_target_: {own}.Reward}}"], "no key 'metrics.mine'"),
        (["+zoo.mine={{_target_: {own}.Reward}}"], "no key 'zoo.mine'"),
    ],
)
def test_a_class_of_the_user_s_own_that_does_not_go_is_one_line(
    given: list[str], message: str, own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], tried: Callable[..., None]
) -> None:
    with pytest.raises(SystemExit) as left:
        prepared(*(part.format(own=own) for part in given), folder=tmp_path)
    printed = capsys.readouterr().err
    assert left.value.code == 2 and printed.count("\n") == 1 and message.format(own=own) in printed, printed
    tried("refused")


@pytest.mark.parametrize(
    "given",
    [
        ["-m", "hydra/launcher=slurm", "hydra.launcher.partition=gpu", "hydra.launcher.setup=[module load x]", "seed=0,1"],
        ["-m", "hydra/sweeper=optuna_maximize", "hydra.sweeper.n_trials=2", "hydra.sweeper.sampler.seed=3", "seed=choice(1,2)"],
        ["-m", "hydra.sweeper.max_batch_size=1", "seed=1,2"],
        ["-m", "experiment=codex/lab/aesthetic", "hydra/launcher=basic"], ["--cfg", "all"], ["--cfg", "job", "--package", "method.gradients",
        "method=doodl"], ["--info"], ["-r"],
    ],
)  # fmt: skip
def test_what_of_hydra_s_makes_sense_is_taken(given: list[str], tried: Callable[..., None]) -> None:
    command_line.preflight(command_line.for_hydra(given), lambda _: None)
    tried("used")


def test_flags_are_given_to_hydra_in_one_way() -> None:
    assert command_line.for_hydra(["-cd", "x", "seed=1", "-m"]) == ["--multirun", "--config-dir=x", "seed=1"]
    assert command_line.for_hydra(["seed=1", "-c", "job", "-p", "method"]) == ["--cfg=job", "--package=method", "seed=1"]


@pytest.mark.parametrize("model", ["nonsense", "lab,sd15", "../lab", "lab method=base"])
def test_a_default_model_that_is_none_is_one_line(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tried: Callable[..., None]
) -> None:
    monkeypatch.setenv("GUIDEDGEN_MODEL", model)
    with pytest.raises(SystemExit) as left:
        command_line.for_hydra(["seed=1"])
    printed = capsys.readouterr().err
    assert (
        left.value.code == 2
        and printed.startswith(f"guidedgen: GUIDEDGEN_MODEL={model}: no such model")
        and printed.count("\n") == 1
    )
    tried("refused")


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(20))


@pytest.mark.parametrize(
    "text",
    [BOMB, "a: " + "[" * 2000 + "]" * 2000, "a: &a [*a]", "a: *b", "a: [", "x" * (1 << 21), "\x00", "caf\xe9: 1", "a:\n" + " {a:" * 60,
     "hydra: {callbacks: {a: {_target_: os.system}}}", "hydra: {run: {dir: /tmp}}", "hydra: {mode: MULTIRUN}",
     "hydra: {job_logging: {formatters: {a: {(): os.system}}}}", "hydra: {launcher: {_target_: os.system}}",
     "hydra: {sweeper: {params: {+hydra.callbacks.a._target_: os.system}}}", "hydra: {sweeper: {params: {hydra.run.dir: /tmp}}}",
     "hydra: {sweeper: {_target_: subprocess.Popen}}", "hydra: {job: {env_set: {LD_PRELOAD: x}}}", "allow_targets: [os.]",
     "method: {_target_: guidedgen.models.tuning.save_file, filename: evil}"],
)  # fmt: skip
def test_an_overlay_that_is_hostile_or_damaged_is_one_line(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tried: Callable[..., None]
) -> None:
    file = tmp_path / "own" / "experiment" / "evil.yaml"
    file.parent.mkdir(parents=True)
    file.write_bytes(f"# @package _global_\n{text}".encode("latin-1"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        prepared(*(["-m"] if "params" in text else []), f"--config-dir={tmp_path / 'own'}", "experiment=evil", folder=tmp_path)
    printed = capsys.readouterr().err
    assert left.value.code == 2 and printed.startswith("guidedgen: ") and printed.count("\n") == 1, printed
    assert not (tmp_path / "evil").exists()
    tried("refused")


def test_what_is_done_can_be_shown_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tried: Callable[..., None]
) -> None:
    """And is not begun again there, nor made where it is not done."""

    def read_only(folder: Path, key: str) -> None:
        raise UsageError(f"{key}={folder}: cannot be written to")

    monkeypatch.setattr(preparation, "check_writable", read_only)
    with pytest.raises(SystemExit):
        prepared(folder=tmp_path)
    monkeypatch.setattr(RunFolder, "done", True)
    (job,) = prepared(folder=tmp_path)
    assert not job.folder.path.exists()
    with pytest.raises(SystemExit):
        prepared("run.fresh=true", folder=tmp_path)
    assert capsys.readouterr().err.count("cannot be written to") == 2
    tried("refused", 2), tried("used")


def test_options_in_a_folder_of_one_s_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By Hydra's --config-dir, in a sweep too, which is listed before it starts."""
    folder = tmp_path / "my options"
    (folder / "method").mkdir(parents=True)
    shutil.copy(config.CONF / "method" / "code.yaml", folder / "method" / "mine.yaml")
    sweep = ["--config-dir", str(folder), "-m", "method=mine,base", "tracker=none", f"outputs={tmp_path}"]
    checked: list[str] = []
    command_line.preflight(sweep, lambda cfg: checked.append(config.module_of(cfg.method)))
    assert checked == ["code", "base"]
    assert [run.folder.name.split("-")[0] for run in sweeps.listed(*command_line.swept(sweep))] == checked
    with pytest.raises(SystemExit):
        command_line.preflight([*sweep[:2], "method=mien"], preparation.prepare)
    assert "did you mean mine?" in capsys.readouterr().err


def test_no_network_is_loaded_before_the_check_is_over(folder: Path) -> None:
    code = (
        "import sys; from guidedgen.cli import command_line\nfrom guidedgen.runs import preparation\n"
        "try: command_line.preflight(['dataset=prompt', 'dataset.prompt=' + 'red ' * 500], preparation.prepare)\n"
        "except SystemExit: pass\n"
        "assert 'diffusers' not in sys.modules and 'open_clip' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code], cwd=folder, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True
    )


def test_help_imports_no_torch(tmp_path: Path) -> None:
    """Which is what would make it slow."""
    code = (
        f"import runpy, sys; sys.argv = ['run.py', '--help']\ntry: runpy.run_path({str(ROOT / 'run.py')!r}, run_name='__main__')\n"
    )
    code += "finally: assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    for group in ("method", "reward", "dataset", "scheduler", "model"):
        assert f"\n{group}=\n" in done.stdout


@pytest.mark.parametrize(("typed", "offered"), [("method=do", "method=doodl"), ("run.pr", "run.profile=")])
def test_tab_completes(typed: str, offered: str, tmp_path: Path) -> None:
    line = f"python run.py {typed}"
    environment = {**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line)), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), "-sc", "query=bash"], cwd=tmp_path, env=environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert offered in done.stdout.split()


def test_help_says_what_every_key_and_every_option_is() -> None:
    printed = usage.text(config.CONF, 100)
    body = (config.CONF / "config.yaml").read_text().split("\n\n", 1)[1].split("\nhydra:")[0]
    assert {line for line in body.splitlines() if line} <= set(printed.splitlines())
    options = printed.split("OPTIONS")[1].split("KEYS")[0]
    assert max(map(len, options.splitlines())) <= 100
    named = {option for group, names in config.groups([config.CONF]).items() for option in names if "/" not in group}
    descriptions = {line.split()[0]: line.split()[1:] for line in options.splitlines() if line.startswith("  ")}
    assert named <= descriptions.keys() and all(descriptions[name] for name in named)
    assert "Table 7 of" in options and "python run.py" not in options


def test_a_plus_before_an_experiment_is_what_it_means(tmp_path: Path) -> None:
    assert command_line.for_hydra(["+experiment=codex/lab/aesthetic", "+row=codex/base"]) == [
        "experiment=codex/lab/aesthetic", "row=codex/base",
    ]  # fmt: skip
    with pytest.raises(SystemExit), pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.stderr", heard := io.StringIO())
        command_line.preflight(command_line.for_hydra(["+experiment=codex/lab/aestetic"]), lambda _: None)
    assert "did you mean codex/lab/aesthetic?" in heard.getvalue()


def every_option() -> list[str]:
    """Options that go alone; experiments and their rows are tested in test_experiments.py."""
    found = config.groups([config.CONF])
    return [
        f"{group}={option}" for group, options in found.items() for option in options if not group.startswith(("experiment", "row"))
    ]


def experiments() -> list[str]:
    return [f"experiment={option}" for option in config.groups([config.CONF])["experiment"]]


def fill(node: DictConfig) -> None:
    """Writes something where a user has to, at any depth."""
    for key in map(str, node):
        if OmegaConf.is_missing(node, key):
            node[key] = ["style.png"] if key in ("images", "prompts") else "text"
        elif not OmegaConf.is_interpolation(node, key) and isinstance(node[key], DictConfig):
            fill(node[key])


@pytest.mark.parametrize("override", experiments())
def test_every_experiment_composes_and_its_first_comment_is_its_command(override: str) -> None:
    cfg = composition.composed([override, "device=cpu", "dtype=float32"])
    fill(cfg)
    for group in ("method", "reward", "dataset", "scheduler", "model"):
        if group != "reward" or cfg.reward:  # plain sampling may do without
            config.check_node(cfg[group], group)
    header, first = (config.CONF / f"{override.replace('=', '/')}.yaml").read_text().splitlines()[:2]
    assert header == "# @package _global_"
    assert re.match(rf"# python run\.py (-m )?{override}(?= |$)", first)


@pytest.mark.parametrize("override", every_option())
def test_every_option_composes_and_matches_its_constructor(override: str) -> None:
    """Names and types of every config file against the signature it is for; `???` is for the user to fill."""
    group = override.split("=")[0]
    needed = ["method=doodl"] if group == "method/gradients" else []  # a group of the methods that use one
    cfg = composition.composed([*needed, override, "device=cpu", "dtype=float32"])
    chosen = OmegaConf.select(cfg, group.replace("/", "."))
    fill(cfg)
    node = OmegaConf.create(OmegaConf.to_container(chosen, resolve=True) if chosen else {})
    if "_target_" in node:
        config.check_node(node, group)
    else:
        assert node == {} or group in ("zoo", "metrics")


def test_every_key_of_the_configs_has_a_comment_or_says_it_itself() -> None:
    """Keys that a user may set are explained where they stand, or are a target's wiring."""
    wiring = {"_target_", "defaults", "clip", "head", "device", "dtype", "batch_size", "hydra", "name", "path", "features", "key"}
    for file in [config.CONF / "config.yaml", *config.CONF.glob("method/*.yaml"), *config.CONF.glob("scheduler/*.yaml")]:
        for line in file.read_text().split("\nhydra:")[0].splitlines():
            key = line.split(":")[0].strip(" -")
            if line.strip() and not line.strip().startswith("#") and key not in wiring and not line.endswith(":"):
                assert "#" in line or key == "_self_", f"{file.name}: {line}"


def test_a_default_model_comes_from_the_environment(folder: Path) -> None:
    done = command("--cfg", "job", cwd=folder, GUIDEDGEN_MODEL="sd15")
    assert "name: sd15" in done.stdout
    assert "HubClip" in done.stdout  # the zoo followed
    done = command("--cfg", "job", "model=lab", cwd=folder, GUIDEDGEN_MODEL="sd15")
    assert "name: lab" in done.stdout
    done = command("experiment=codex/aesthetic", "--cfg", "job", cwd=folder, GUIDEDGEN_MODEL="sd21")
    assert "name: sd15" in done.stdout  # the experiment says so
    done = command("--cfg", "job", "zoo=hub", cwd=folder)
    assert "name: lab" in done.stdout
    assert "HubClip" in done.stdout


def test_the_identity_of_a_run_is_what_it_samples() -> None:
    def identity(*overrides: str) -> str:
        return config.identity(composition.composed(["device=cpu", "dtype=float32", *overrides]))

    same = identity()
    assert identity("outputs=elsewhere", "study=other", "tracker=none", "metrics=none", "run.fresh=true") == same
    different = [
        ["seed=1"],
        ["method=base"],
        ["method.num_particles=5"],
        ["dataset.limit=4"],
        ["model.guidance_scale=3"],
        ["batch_size=4"],
    ]
    assert len({same, *(identity(*overrides) for overrides in different)}) == 1 + len(different)


def test_a_method_of_the_user_s_own_says_what_it_needs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "climbing.py").write_text(
        "import dataclasses\nfrom guidedgen.methods import Needs\n@dataclasses.dataclass(frozen=True, kw_only=True)\nclass Climb:\n"
        "    needs = Needs(gradient=True)\n    def __call__(self, problem, observe=None): ...\n"
    )
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    overrides = ["method=base", "method._target_=climbing.Climb", "allow_targets=[climbing.]"]
    cfg = composition.composed([*overrides, "reward=compressibility"])
    with pytest.raises(UsageError, match="compressibility has no gradient"):
        preparation.prepare(cfg)
    preparation.prepare(composition.composed([*overrides, "reward=aesthetic"]))

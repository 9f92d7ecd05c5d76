"""What a user types: wrong commands end in one line and exit code 2 before anything is loaded; help is fast and light."""

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import processes
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from guidedgen import command_line, config, jobs, sweeps, usage
from guidedgen.types import UsageError

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
        ["method=doodl", "scheduler=ddim", "method/gradients=adjoint"],
        ["method.process=edict", "adjoint needs ddim"],
    ),
    "picture that is not there": (
        ["method=doodl", "scheduler=ddim", "method.source_image=none.png", "method.tied=false"],
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
    "quality of a JPEG": (["reward=compressibility", "reward.quality=500"], ["reward.quality=500"]),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
    case: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, for speed: `preflight` is all that runs before Hydra's own main."""
    arguments, wanted = WRONG[case]
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as left:
        command_line.preflight(arguments, jobs.prepare)
    assert left.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("guidedgen: ")
    assert said.err.count("\n") == 1
    assert all(part in said.err for part in wanted), said.err


@pytest.mark.parametrize("case", ["typo in a nested key", "missing weights offline", "prompt of 500 words", "unknown flag"])
def test_a_wrong_command_leaves_at_once(case: str, place: Path) -> None:
    """As a process: exit code 2, one line, no traceback, and no network loaded (which would say so in the modules)."""
    arguments, wanted = WRONG[case]
    done = command(*arguments, cwd=place)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert all(part in done.stderr for part in wanted)
    assert not (place / "outputs" / "default").exists() or not list((place / "outputs" / "default").iterdir())


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
        command_line.preflight([*sweep[:2], "method=mien"], jobs.prepare)
    assert "did you mean mine?" in capsys.readouterr().err


def test_no_network_is_loaded_before_the_check_is_over(place: Path) -> None:
    code = (
        "import sys; from guidedgen import command_line, jobs\n"
        "try: command_line.preflight(['dataset=prompt', 'dataset.prompt=' + 'red ' * 500], jobs.prepare)\n"
        "except SystemExit: pass\n"
        "assert 'diffusers' not in sys.modules and 'open_clip' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code], cwd=place, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True
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
    told = usage.text(config.CONF, 100)
    body = (config.CONF / "config.yaml").read_text().split("\n\n", 1)[1].split("\nhydra:")[0]
    assert {line for line in body.splitlines() if line} <= set(told.splitlines())
    options = told.split("OPTIONS")[1].split("KEYS")[0]
    assert max(map(len, options.splitlines())) <= 100
    named = {option for group, names in config.groups([config.CONF]).items() for option in names if "/" not in group}
    said = {line.split()[0]: line.split()[1:] for line in options.splitlines() if line.startswith("  ")}
    assert named <= said.keys() and all(said[name] for name in named)
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
            node[key] = ["style.png"] if key == "images" else "text"
        elif not OmegaConf.is_interpolation(node, key) and isinstance(node[key], DictConfig):
            fill(node[key])


@pytest.mark.parametrize("override", experiments())
def test_every_experiment_composes_and_its_first_comment_is_its_command(override: str) -> None:
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        cfg = compose("config", overrides=[override, "device=cpu", "dtype=float32"])
    fill(cfg)
    for group in ("method", "reward", "dataset", "scheduler", "model"):
        config.check_node(cfg[group], group)
    header, first = (config.CONF / f"{override.replace('=', '/')}.yaml").read_text().splitlines()[:2]
    assert header == "# @package _global_"
    assert re.match(rf"# python run\.py (-m )?{override}(?= |$)", first)


@pytest.mark.parametrize("override", every_option())
def test_every_option_composes_and_matches_its_constructor(override: str) -> None:
    """Names and types of every leaf against the signature it is for; `???` is for the user to fill."""
    group = override.split("=")[0]
    needed = ["method=doodl"] if group == "method/gradients" else []  # a group of the methods that use one
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        cfg = compose("config", overrides=[*needed, override, "device=cpu", "dtype=float32"])
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


def test_a_default_model_comes_from_the_environment(place: Path) -> None:
    done = command("--cfg", "job", cwd=place, GUIDEDGEN_MODEL="sd15")
    assert "name: sd15" in done.stdout
    assert "HubClip" in done.stdout  # the zoo followed
    done = command("--cfg", "job", "model=lab", cwd=place, GUIDEDGEN_MODEL="sd15")
    assert "name: lab" in done.stdout
    done = command("experiment=codex/aesthetic", "--cfg", "job", cwd=place, GUIDEDGEN_MODEL="sd21")
    assert "name: sd15" in done.stdout  # the experiment says so
    done = command("--cfg", "job", "zoo=hub", cwd=place)
    assert "name: lab" in done.stdout
    assert "HubClip" in done.stdout


def test_the_identity_of_a_run_is_what_it_samples() -> None:
    def identity(*overrides: str) -> str:
        with initialize_config_dir(str(config.CONF), version_base="1.3"):
            return config.identity(compose("config", overrides=["device=cpu", "dtype=float32", *overrides]))

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


def test_a_method_of_the_user_s_own_says_what_it_needs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "climbing.py").write_text(
        "import dataclasses\nfrom guidedgen.types import Needs\n@dataclasses.dataclass(frozen=True, kw_only=True)\nclass Climb:\n"
        "    needs = Needs(gradient=True)\n    def __call__(self, problem, observe=None): ...\n"
    )
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        overrides = ["method=base", "method._target_=climbing.Climb", "allow_targets=[climbing.]"]
        cfg = compose("config", overrides=[*overrides, "reward=compressibility"])
        with pytest.raises(UsageError, match="compressibility has no gradient"):
            jobs.prepare(cfg)
        jobs.prepare(compose("config", overrides=[*overrides, "reward=aesthetic"]))

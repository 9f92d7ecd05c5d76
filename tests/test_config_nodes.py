"""Config nodes are checked before anything of theirs is called: targets at any depth, names and types of options."""

import hashlib
import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from guidedgen.basics.errors import UsageError
from guidedgen.runs import config, targets

EVIL = {"_target_": "os.system", "command": "true"}
MULTI = "guidedgen.rewards.multi.Multi"
COMPRESSIBILITY = "guidedgen.rewards.compressibility.Compressibility"


@pytest.mark.parametrize(
    ("node", "key"),
    [
        (EVIL, "k"),
        ({"_target_": MULTI, "rewards": EVIL, "weights": {}}, "k.rewards"),
        ({"_target_": MULTI, "rewards": {"a": EVIL}, "weights": {}}, "k.rewards.a"),
        (
            {"_target_": MULTI, "rewards": {"a": {"_target_": COMPRESSIBILITY, "quality": EVIL}}, "weights": {}},
            "k.rewards.a.quality",
        ),
        ({"_target_": MULTI, "_recursive_": False, "rewards": {"a": EVIL}, "weights": {}}, "k.rewards.a"),
    ],
)
def test_a_strange_target_is_refused_at_any_depth(node, key):
    for call in (config.check_node, config.build):
        with pytest.raises(UsageError, match=rf"^{key}\._target_=os\.system: only guidedgen\. may be called") as caught:
            call(OmegaConf.create(node), "k")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("held", [{"b": {"c": EVIL}}, [[1, EVIL]], [EVIL], "text", 3, True])
def test_what_is_no_node_is_no_part_of_a_run(held, tried):
    """Whatever lies inside it."""
    for call in (config.check_node, config.build):
        with pytest.raises(UsageError, match=r"^k\.rewards\.a=.*: expected Reward, got (dict|list|str|int|bool)"):
            call(OmegaConf.create({"_target_": MULTI, "rewards": {"a": held}, "weights": {}}), "k")
    tried("refused")


def test_an_interpolated_target_is_refused():
    tree = OmegaConf.create({"evil": EVIL, "reward": {"_target_": MULTI, "rewards": {"a": "${evil}"}, "weights": {}}})
    with pytest.raises(UsageError, match=r"^reward\.rewards\.a\._target_=os\.system"):
        config.check_node(tree.reward, "reward")


def test_positional_arguments_do_not_get_past_the_check():
    for extra in ([1], [EVIL]):
        with pytest.raises(UsageError, match=r"^k\._args_: .*Compressibility has no such option"):
            config.check_node(OmegaConf.create({"_target_": COMPRESSIBILITY, "_args_": extra}), "k")


OWN = """
import dataclasses, functools, subprocess
from typing import TYPE_CHECKING, Any
from guidedgen.methods import Needs
from guidedgen.rewards import Reward
from guidedgen.basics.tasks import Task

if TYPE_CHECKING:
    from elsewhere import Unknown

@dataclasses.dataclass(kw_only=True)
class Bright:
    scale: float = 1.0
    inner: Reward | None = None
    differentiable = True
    def __call__(self, images, tasks):
        return self.scale * images.mean((1, 2, 3))

class Dark(Bright): ...

class Half:
    def __call__(self, images, tasks): ...

@dataclasses.dataclass
class Fails(Bright):
    def __post_init__(self):
        raise RuntimeError("no\\nluck")

class Unfindable(Bright):
    def __init__(self, thing: "Unknown" = None, **options): ...

class Part: ...

class Keeps:
    def __init__(self, part: Part, *, maybe: Part | None = None, anything: Any = None, thing: object = None, word: str = ""): ...
    differentiable = False
    def __call__(self, images, tasks): ...

def make(scale: float = 1.0) -> Reward:
    return Bright(scale=scale)

def unsaid(): ...

made = Bright()
partly = functools.partial(Bright)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a package of the user's own, on the path."""
    name = f"lab_of_{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:8]}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


@pytest.mark.parametrize("dot", ["", "."])
def test_own_rewards_are_built_by_class_and_by_factory_and_inside_others(own: str, dot: str, tried):
    allow = [f"{own}{dot}"]
    for name in ("Bright", "Dark", "make"):
        node = {"_target_": f"{own}.{name}", "scale": 2}
        assert config.build(OmegaConf.create(node), "reward", allow).scale == 2
        multi = {"_target_": MULTI, "rewards": {"a": node}, "weights": {"a": 1}}
        assert config.build(OmegaConf.create(multi), "reward", allow).rewards["a"].scale == 2
        config.build(OmegaConf.create({"_target_": f"{own}.Bright", "inner": node}), "reward", allow)
    config.build(OmegaConf.create({"_target_": f"{own}.Unfindable", "anything": 3, "thing": 4}), "reward", allow)
    tried("used", 10)


@pytest.mark.parametrize(
    ("key", "name", "why"),
    [
        ("reward", "Half", "has no differentiable"),
        ("reward", "Fails", r"cannot be made: RuntimeError: no luck \(lab_of_\w+\.py, line \d+\)$"),
        ("reward", "Part", "Part has no __call__"),
        ("reward", "unsaid", "has to say what it returns"),
        ("reward", "made", "not a class or function"),
        ("reward", "partly", "not a class or function"),
        ("reward", "subprocess", "not a class or function"),
        ("reward", "subprocess.Popen", "No module named"),
        ("reward", "Reward", "not a class or function"),
        ("reward", "Task", "is defined in guidedgen.basics.tasks, and only imported there"),
        ("reward", "nothing", "no attribute"),
        ("method", "Bright", "has no needs"),
        ("dataset", "Bright", "has no tasks"),
        ("scheduler", "Bright", "has no grid, transition"),
        ("tracker", "Bright", "has no log"),
        ("model", "Bright", "has no denoiser, check"),
        ("metrics.distances.d", "Bright", "has no features, name"),
    ],
)
def test_own_targets_of_another_kind_are_refused(own: str, key: str, name: str, why: str, tried):
    with pytest.raises(UsageError, match=why) as caught:
        config.build(OmegaConf.create({"_target_": f"{own}.{name}"}), key, [own])
    assert "\n" not in str(caught.value) and str(caught.value).startswith(key)
    tried("refused")


@pytest.mark.parametrize("broken", ["raise ValueError('a\\nb')", "def f(:", "import nowhere", "import sys; sys.exit(3)"])
def test_a_module_that_cannot_be_imported_is_reported_in_one_line(broken: str, own: str, tmp_path: Path, tried):
    (tmp_path / f"{own}_broken.py").write_text(broken)
    with pytest.raises(UsageError, match=r"^reward\._target_=") as caught:
        config.build(OmegaConf.create({"_target_": f"{own}_broken.Reward"}), "reward", [f"{own}_broken"])
    assert "\n" not in str(caught.value)
    tried("refused")


# What a module has by importing it, or has no key for.
STRANGERS = [
    ("method", "guidedgen.models.tuning.save_file"), ("reward", "guidedgen.models.tuning.save_file"),
    ("metrics.scorers.a", "guidedgen.zoo.files.Path"), ("reward", "guidedgen.rewards.multi.Reward"),
    ("reward", "guidedgen.rewards.style.check"), ("method", "guidedgen.rewards.multi.Multi"),
    ("reward", "guidedgen.methods.base.Base"), ("dataset", "guidedgen.datasets.downloads.Source"),
    ("dataset", "guidedgen.datasets.tasks.read_text"), ("reward", "guidedgen.zoo.inception.Inception"),
    ("scheduler", "guidedgen.methods.code.Code"), ("tracker", "guidedgen.runs.store.RunFolder"),
    ("tracker", "guidedgen.runs.tracker.Tracker"), ("model", "guidedgen.models.tuning.Tuned"),
    ("metrics.distances.fid", "guidedgen.metrics.frechet.frechet_distance"), ("k", "guidedgen.cli.command_line.check"),
    ("k", "guidedgen.runs.experiment.main"), ("k", "guidedgen.runs.store.write_atomic"), ("k", "guidedgen.lab.training.train"),
    ("metrics.per_class", "guidedgen.metrics.sets.Fid"), ("method.gradients", "guidedgen.runs.store.check_writable"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "target"), STRANGERS)
def test_only_what_a_key_asks_for_is_taken_from_a_package(key: str, target: str, tried):
    with pytest.raises(UsageError, match=rf"^{key}\._target_={target}: ") as caught:
        config.check_node(OmegaConf.create({"_target_": target}), key, ["guidedgen"])
    assert "\n" not in str(caught.value)
    tried("refused")


@pytest.mark.parametrize(
    "target", [target for _, target in STRANGERS] + ["guidedgen.zoo.clip.LabClip", "guidedgen.methods.base.Base"]
)
@pytest.mark.parametrize("option", ["rewards", "weights"])
def test_an_option_takes_no_object_but_what_its_type_says(target: str, option: str, tried):
    node = {"_target_": MULTI, "rewards": {}, "weights": {}}
    node[option] = {"a": {"_target_": target}}
    if (option, target) == ("rewards", MULTI):
        return  # a sum of sums
    with pytest.raises(UsageError, match=rf"^reward\.{option}\.a\._target_={target}: "):
        config.check_node(OmegaConf.create(node), "reward")
    tried("refused")


@pytest.mark.parametrize(
    "entries",
    ["my_lab.", 3, None, [3], [None], [""], ["."], ["os."], ["os"], ["builtins."], ["subprocess"], ["os.path."], ["a b"], ["../a"],
     ["a..b"], ["importlib."], [["my_lab"]], ["my-lab"], ["-"]],
)  # fmt: skip
def test_what_is_no_package_is_not_allowed(entries, tried):
    with pytest.raises(UsageError, match=r"^allow_targets"):
        targets.packages(OmegaConf.create({"k": entries}).k)
    tried("refused")


def test_packages_are_taken_with_their_dot_and_without():
    given = ["my_lab.", "my_lab", "my_lab.rewards.", "été"]
    assert targets.packages(OmegaConf.create(given)) == tuple(given)
    node = OmegaConf.create({"_target_": "my_labs.Reward"})
    with pytest.raises(
        UsageError, match=r"only guidedgen\., my_lab\. may be called"
    ):  # not a package that begins with the same letters
        config.check_node(node, "reward", ["my_lab"])


@pytest.mark.parametrize(
    ("option", "value"), [("_partial_", True), ("_recursive_", False), ("_convert_", "some"), ("_convert_", 3)]
)
def test_what_hydra_would_leave_unmade_is_refused(option: str, value: object, tried):
    with pytest.raises(UsageError, match=rf"^reward\.{option}="):
        config.build(OmegaConf.create({"_target_": COMPRESSIBILITY, option: value}), "reward")
    tried("refused")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2**63, -(2**63), 10**400, 10**9])
@pytest.mark.parametrize("form", ["{}", "[{}]", "[1, {}]"])
def test_numbers_are_finite_and_not_beyond_all_measure(value: float, form: str, tried):
    """At any option, in a list and in a mapping too."""
    nodes = {"quality": {"_target_": COMPRESSIBILITY}, "num_particles": {"_target_": "guidedgen.methods.code.Code"}}
    held = [value] if form == "[{}]" else [1, value] if form == "[1, {}]" else value
    for name, node in nodes.items():
        with pytest.raises(UsageError, match=rf"^k\.{name}"):
            config.check_node(OmegaConf.create(node | {name: held}), "k")
    if value != 10**9:
        with pytest.raises(UsageError, match=r"^k\.weights\.a"):
            config.check_node(OmegaConf.create({"_target_": MULTI, "rewards": {}, "weights": {"a": held}}), "k")
    tried("refused", 3)


@pytest.mark.parametrize("value", [-0.0, 0, 1e-300, 1e308, 5, 2**62])
def test_ordinary_numbers_pass(value: float, tried):
    config.check_node(OmegaConf.create({"_target_": MULTI, "rewards": {}, "weights": {"a": value}}), "k")
    tried("used")


def test_a_seed_is_no_count(own: str):
    node = {"_target_": "guidedgen.methods.adjoint_tuning.AdjointTuning", "seed": 2**40, "num_updates": 2**40}
    with pytest.raises(UsageError, match=r"^k\.num_updates=\d+: has to be at most"):
        config.check_node(OmegaConf.create(node), "k")


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("guidedgen.methods.code.Code", "code"), ("guidedgen.rewards.vqa.Answer", "vqa"), ("guidedgen.datasets.prompt.OnePrompt", "prompt"),
        ("my_lab.Reward", "my_lab_Reward"), ("my_lab.Other", "my_lab_Other"), ("my.lab.base.Mine", "base_Mine"), ("Bare", "Bare"),
        ("guidedgen.lab.judge.TasteOracle", "judge_TasteOracle"), ("guidedgen.lab.judge.SceneAccuracy", "judge_SceneAccuracy"),
    ],
)  # fmt: skip
def test_two_targets_of_one_file_have_two_names(target: str, name: str):
    assert config.module_of({"_target_": target}) == name


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            {"rewards": {"a": {"_target_": COMPRESSIBILITY, "qualty": 3}}, "weights": {}},
            r"^k\.rewards\.a\.qualty: .*did you mean quality\?",
        ),
        ({"rewards": {}, "weights": {"a": "much"}}, r"^k\.weights\.a=much: expected float, got str"),
        ({"rewards": {}, "weights": {"a": True}}, r"^k\.weights\.a=True: expected float, got bool"),
        ({"rewards": {}}, r"^k\.weights: missing"),
        ({"rewards": {}, "weights": None}, r"^k\.weights=null: expected .*, got null"),
        ({"rewards": {}, "weights": {"a": None}}, r"^k\.weights\.a=null: expected float, got null"),
    ],
)
def test_options_inside_mappings_are_checked(node, message):
    with pytest.raises(UsageError, match=message):
        config.check_node(OmegaConf.create({"_target_": MULTI, **node}), "k")


@pytest.mark.parametrize("name", ["part", "word"])
def test_null_is_no_object_of_a_class(name: str, own: str):
    node = OmegaConf.create({"_target_": f"{own}.Keeps", "part": {"_target_": f"{own}.Part"}})
    config.check_node(OmegaConf.merge(node, {"maybe": None, "anything": None, "thing": None}), "k", [own])
    with pytest.raises(UsageError, match=rf"^k\.{name}=null: expected (Part|str), got null$"):
        config.check_node(OmegaConf.merge(node, {name: None}), "k", [own])


def test_augmentations_may_not_be_null():
    """Of a method, whose every other option is as its file has it."""
    node = OmegaConf.load(config.CONF / "method" / "blip_inversion.yaml")
    del node["defaults"]
    with pytest.raises(UsageError, match=r"^method\.augmentations=null: expected Augmentations, got null$"):
        config.check_node(OmegaConf.merge(node, {"augmentations": None}), "method")


@pytest.mark.parametrize("node", [None, 3, "guidedgen.rewards.multi.Multi", {}, {"rewards": {}}, [1]])
def test_what_has_no_target_is_refused(node):
    held = OmegaConf.create({"k": node}).k
    for call in (config.check_node, config.build):
        with pytest.raises(UsageError, match=r"^k=.*: expected a mapping with the _target_ it is built by$"):
            call(held, "k")

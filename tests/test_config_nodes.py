"""Config nodes are checked before anything of theirs is called: targets at any depth, names and types of options."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from guidedgen import config
from guidedgen.types import UsageError

EVIL = {"_target_": "os.system", "command": "true"}
MULTI = "guidedgen.rewards.multi.Multi"
COMPRESSIBILITY = "guidedgen.rewards.compressibility.Compressibility"


@pytest.mark.parametrize(
    ("node", "key"),
    [
        (EVIL, "k"),
        ({"_target_": MULTI, "rewards": EVIL, "weights": {}}, "k.rewards"),
        ({"_target_": MULTI, "rewards": {"a": EVIL}, "weights": {}}, "k.rewards.a"),
        ({"_target_": MULTI, "rewards": {"a": {"b": {"c": EVIL}}}, "weights": {}}, "k.rewards.a.b.c"),
        ({"_target_": MULTI, "rewards": {"a": [[1, EVIL]]}, "weights": {}}, "k.rewards.a.0.1"),
        ({"_target_": MULTI, "rewards": {}, "weights": [{"a": EVIL}]}, "k.weights.0.a"),
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


def test_an_interpolated_target_is_refused():
    tree = OmegaConf.create({"evil": EVIL, "reward": {"_target_": MULTI, "rewards": {"a": "${evil}"}, "weights": {}}})
    with pytest.raises(UsageError, match=r"^reward\.rewards\.a\._target_=os\.system"):
        config.check_node(tree.reward, "reward")


def test_positional_arguments_do_not_get_past_the_check():
    for extra in ([1], [EVIL]):
        with pytest.raises(UsageError, match=r"^k\._args_: .*Compressibility has no such option"):
            config.check_node(OmegaConf.create({"_target_": COMPRESSIBILITY, "_args_": extra}), "k")


def test_allowed_packages_may_be_nested():
    node = {
        "_target_": MULTI,
        "_convert_": "all",
        "rewards": {"a": {"_target_": "fractions.Fraction", "numerator": 3}},
        "weights": {"a": 1},
    }
    assert config.build(OmegaConf.create(node), "k", ("fractions.",)).rewards["a"] == 3


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


class Part:
    """What an option may be."""


def takes_class(part: Part, *, maybe: Part | None = None, anything: Any = None, thing: object = None, word: str = "") -> None:
    """A constructor of all kinds of options."""


@pytest.mark.parametrize("name", ["part", "word"])
def test_null_is_no_object_of_a_class(name, monkeypatch):
    monkeypatch.setattr(config, "takes_class", takes_class, raising=False)
    node = OmegaConf.create({"_target_": "guidedgen.config.takes_class", "part": {"_target_": COMPRESSIBILITY}})
    config.check_node(OmegaConf.merge(node, {"maybe": None, "anything": None, "thing": None}), "k")
    with pytest.raises(UsageError, match=rf"^k\.{name}=null: expected (Part|str), got null$"):
        config.check_node(OmegaConf.merge(node, {name: None}), "k")


def test_augmentations_may_not_be_null():
    """Of a method, whose every other option is as its file has it."""
    node = OmegaConf.load(config.CONF / "method" / "blip_inversion.yaml")
    with pytest.raises(UsageError, match=r"^method\.augmentations=null: expected Augmentations, got null$"):
        config.check_node(OmegaConf.merge(node, {"augmentations": None}), "method")


@pytest.mark.parametrize("node", [None, 3, "guidedgen.rewards.multi.Multi", {}, {"rewards": {}}, [1]])
def test_what_has_no_target_is_refused(node):
    held = OmegaConf.create({"k": node}).k
    for call in (config.check_node, config.build):
        with pytest.raises(UsageError, match=r"^k=.*: expected a mapping with the _target_ it is built by$"):
            call(held, "k")

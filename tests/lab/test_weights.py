"""What is shipped is small, loads, and keeps its bars on small samples."""

import functools
import json

import pytest
import torch

from guidedgen.lab import exam, networks, referees
from guidedgen.lab.networks import WEIGHTS


@functools.cache
def _figures(part: str, **few: int) -> dict[str, float]:
    missing = [name for name in exam.PARTS[part] if not (WEIGHTS / name).exists()]
    if missing:
        pytest.skip(f"not shipped: {', '.join(missing)}")
    if part == "vae":
        return exam.examine_vae(networks.load_vae(), seed=1, **few)
    if part == "classifier":
        return exam.examine_classifier(networks.load_classifier(), seed=1, **few)
    if part == "aesthetic":
        return exam.examine_aesthetic(networks.load_aesthetic(), networks.load_clip("guide"), seed=1, **few)
    if part in ("blip2", "vqa"):
        network, examine = (
            (referees.load_blip2(), exam.examine_blip2) if part == "blip2" else (referees.load_vqa(), exam.examine_vqa)
        )
        return examine(network, networks.load_tokenizer(), networks.load_vae(), seed=1, **few)
    name = part.removeprefix("clip-")
    return exam.examine_clip(name, networks.load_clip(name), networks.load_tokenizer(), seed=1, **few)


def test_all_weights_together_fit_the_repository() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) <= 45e6


def test_no_config_says_where_it_was_made() -> None:
    configs = list(WEIGHTS.rglob("*.json"))
    assert configs and not [file for file in configs if "_name_or_path" in json.loads(file.read_text())]


@pytest.mark.parametrize(
    ("part", "n"),
    [
        ("vae", 128),
        ("classifier", 96),
        ("clip-guide", 512),
        ("clip-preference", 512),
        ("clip-judge", 512),
        ("blip2", 128),
        ("vqa", 256),
    ],
)
def test_bars_hold_on_a_small_sample(part: str, n: int) -> None:
    figures = _figures(part, n=n)
    kept = exam.passed(figures)
    assert kept
    assert {key: figures[key] for key in kept if not kept[key]} == {}


def test_the_latents_have_stable_diffusions_scale() -> None:
    assert _figures("vae", n=128)["vae/latent std"] == pytest.approx(1, abs=0.1)


def test_the_aesthetic_head_ranks_as_the_oracle() -> None:
    assert _figures("aesthetic", n=256)["aesthetic/spearman"] > 0.7


def test_the_preference_clip_chooses_as_the_rater_does_and_not_as_the_guide() -> None:
    if not all((WEIGHTS / name).exists() for name in exam.PARTS["clip-preference"]):
        pytest.skip("no preference CLIP is shipped")
    clips = networks.load_clip("preference"), networks.load_clip("guide")
    figures = exam.examine_preference(*clips, networks.load_tokenizer(), networks.load_vae(), seed=1, n=128)
    assert figures["clip-preference/choice"] > 0.75
    assert figures["clip-preference/choice"] > figures["clip-preference/choice, guide's"]
    assert figures["clip-preference/choice, taste"] > 0.6


def test_the_generator_draws_what_is_asked() -> None:
    if not all((WEIGHTS / name).exists() for name in exam.PARTS["generator"]):
        pytest.skip("no generator is shipped")
    figures = exam.examine_generator(exam.load_pipeline(), networks.load_classifier(), seed=1, numbers={"single": 8}, steps=20)
    assert figures["generator/single"] >= 7 / 8


def test_the_flow_draws_what_is_asked() -> None:
    if not all((WEIGHTS / name).exists() for name in exam.PARTS["flow"]):
        pytest.skip("no flow is shipped")
    figures = exam.examine_generator(
        exam.load_flow(), networks.load_classifier(), 1, "flow", numbers={"single": 8}, **exam.SAMPLING["flow"]
    )
    assert figures["flow/single"] >= 7 / 8


def test_the_few_step_generator_draws_what_is_asked() -> None:
    """In two steps."""
    if not all((WEIGHTS / name).exists() for name in exam.PARTS["turbo"]):
        pytest.skip("no few-step generator is shipped")
    figures = exam.examine_generator(
        exam.load_turbo(), networks.load_classifier(), 1, "turbo", numbers={"single": 32}, **exam.SAMPLING["turbo"]
    )
    assert figures["turbo/single"] >= 0.9


@pytest.mark.parametrize("name", ["classifier", "aesthetic", "clip-guide", "clip-preference", "clip-judge", "blip2", "vqa"])
def test_shipped_networks_are_frozen_and_finite(name: str) -> None:
    if not all((WEIGHTS / needed).exists() for needed in exam.PARTS[name]):
        pytest.skip(f"{name} is not shipped")
    network = {
        "classifier": networks.load_classifier,
        "aesthetic": networks.load_aesthetic,
        "clip-guide": lambda: networks.load_clip("guide"),
        "clip-preference": lambda: networks.load_clip("preference"),
        "clip-judge": lambda: networks.load_clip("judge"),
        "blip2": referees.load_blip2,
        "vqa": referees.load_vqa,
    }[name]()
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in network.parameters())

"""What is tuned, and that diffusers itself loads it and predicts the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from guidedgen.basics.errors import UsageError
from guidedgen.basics.tasks import Task
from guidedgen.methods.adjoint_tuning import AdjointTuning
from guidedgen.models import tuning
from guidedgen.models.stable_diffusion import StableDiffusion
from guidedgen.process import Tuning
from guidedgen.process.grid import Point

PROMPT = "a cat"


def tuned_by(what: str, **options: Any) -> Tuning:
    return Tuning(**{"what": what, "rank": 2, "token": "<new>", "num_vectors": 2, "initial": None, "seed": 3, **options})


def model(path: Path, **options: Any) -> StableDiffusion:
    return StableDiffusion(path=str(path), name="tiny", **options)


def predicted(sd: StableDiffusion, prompt: str = PROMPT) -> Tensor:
    x = torch.randn(1, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return sd.denoiser([Task(id="0", prompt=prompt)])(x, Point(t=500.0, alpha=0.7, sigma=0.7)).eps


def pipeline(folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)


def theirs(pipe: Any, prompt: str = PROMPT) -> Tensor:
    """diffusers' own prediction, guidance 7.5, its pipeline encoding the prompt."""
    x = torch.randn(1, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))[:, 0]
    with torch.no_grad():
        cond, uncond = pipe.encode_prompt(prompt, "cpu", 1, True)
        eps = pipe.unet(torch.cat([x, x]), 500, torch.cat([uncond, cond])).sample
    return (eps[:1] + 7.5 * (eps[1:] - eps[:1]))[:, None]


def step(sd: StableDiffusion, tuned: tuning.Tunable) -> None:
    """Moves every parameter far, after a look that gradients reach them (at first an adapter's inner half has none)."""
    with torch.enable_grad():
        gradients = torch.autograd.grad(predicted(sd).square().sum(), tuned.free)
    assert sum(bool(gradient.any()) for gradient in gradients) >= len(gradients) / 2
    with torch.no_grad():
        for i, value in enumerate(tuned.free):
            value += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(i)).to(value)


@pytest.mark.parametrize("what", ["weights", "attention", "adapter", "token"])
def test_diffusers_loads_what_is_saved_and_predicts_the_same(folders: dict[str, Path], tmp_path: Path, what: str) -> None:
    from diffusers import UNet2DConditionModel

    source, sd = folders["epsilon"], model(folders["epsilon"])
    with torch.no_grad():
        before = predicted(sd)
        torch.testing.assert_close(before, theirs(pipeline(source)), rtol=0, atol=1e-4 * before.abs().max().item())
    tuned = tuning.tunable(sd, tuned_by(what))
    step(sd, tuned)
    tuned.freeze()
    tuned.save(tmp_path / "learned")
    with torch.no_grad():
        after = predicted(sd)
    assert not after.requires_grad
    assert (after - before).norm() > 0.01 * before.norm()  # the step shows

    pipe, prompt = pipeline(source), PROMPT
    if what in ("weights", "attention"):
        pipe.unet = UNet2DConditionModel.from_pretrained(tmp_path / "learned", subfolder="unet")
    elif what == "adapter":
        pipe.load_lora_weights(tmp_path / "learned")
    else:
        pipe.load_textual_inversion(tmp_path / "learned", token="<new>")
        prompt = f"<new> {PROMPT}"
    torch.testing.assert_close(after, theirs(pipe, prompt), rtol=0, atol=1e-4 * after.abs().max().item())

    again = model(source, learned=str(tmp_path / "learned"))
    with torch.no_grad():
        torch.testing.assert_close(predicted(again), after, rtol=0, atol=0)


@pytest.mark.parametrize("what", ["adapter", "token", "attention", "weights"])
def test_exactly_what_is_named_is_tuned(folders: dict[str, Path], what: str) -> None:
    sd = model(folders["epsilon"])
    everything = sum(value.numel() for value in sd.unet.parameters())
    tuned = tuning.tunable(sd, tuned_by(what))
    count = sum(value.numel() for value in tuned.free)
    asking = [
        value for value in (*sd.unet.parameters(), *sd.text_encoder.parameters(), *sd.vae.parameters()) if value.requires_grad
    ]
    if what == "token":
        assert [tuple(value.shape) for value in tuned.free] == [(2, 16)] and not asking
        return
    assert {id(value) for value in asking} == {id(value) for value in tuned.free}
    projections = [
        module for name, module in sd.unet.named_modules()
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0")) and (".attn1." in name or ".attn2." in name)
    ]  # fmt: skip
    attention = sum(value.numel() for module in projections for name, value in module.named_parameters() if "lora" not in name)
    if what == "weights":
        assert count == everything
    elif what == "attention":
        assert count == attention < everything / 2
    else:
        assert count == sum(2 * (module.in_features + module.out_features) for module in projections)  # rank 2


def test_an_adapter_begins_as_nothing_and_the_same_for_a_seed(folders: dict[str, Path]) -> None:
    sd, other = model(folders["epsilon"]), model(folders["epsilon"])
    with torch.no_grad():
        before = predicted(sd)
        state = torch.get_rng_state()
        first, second = tuning.tunable(sd, tuned_by("adapter")), tuning.tunable(other, tuned_by("adapter"))
        assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
        torch.testing.assert_close(predicted(sd), before, rtol=0, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(first.free, second.free, strict=True))
    assert any(value.any() for value in first.free)


def test_an_adapter_of_a_network_in_half_precision_is_in_float32_and_moves(folders: dict[str, Path], tmp_path: Path) -> None:
    """At the default rate an update is 1e-4, less than half a digit of most numbers in bfloat16."""
    sd = model(folders["epsilon"], dtype="bfloat16")
    tuned = tuning.tunable(sd, tuned_by("adapter"))
    assert {value.dtype for value in tuned.free} == {torch.float32} and sd.unet.dtype == torch.bfloat16
    own = {value.dtype for name, value in sd.unet.named_parameters() if "lora" not in name}
    assert own == {torch.bfloat16}
    optimizer = torch.optim.AdamW(tuned.free, lr=AdjointTuning.lr)
    for _ in range(2):  # at first the inner halves have no gradient, as the outer ones are 0
        before = [value.detach().clone() for value in tuned.free]
        with torch.enable_grad():
            gradients = torch.autograd.grad(predicted(sd).square().sum(), tuned.free)
        for value, gradient in zip(tuned.free, gradients, strict=True):
            assert gradient.dtype == torch.float32
            value.grad = gradient
        optimizer.step()
    moved = sum(int((old != new).sum()) for old, new in zip(before, tuned.free, strict=True))
    assert moved > 0.99 * sum(value.numel() for value in tuned.free)

    tuned.freeze()
    tuned.save(tmp_path)
    with torch.no_grad():
        again = predicted(model(folders["epsilon"], dtype="bfloat16", learned=str(tmp_path)))
        torch.testing.assert_close(again, predicted(sd), rtol=0, atol=0)


def test_an_adapter_is_learned_in_addition_to_those_that_the_model_has(folders: dict[str, Path], tmp_path: Path) -> None:
    first = model(folders["epsilon"])
    tuned = tuning.tunable(first, tuned_by("adapter"))
    step(first, tuned)
    tuned.save(tmp_path / "first")
    learned = {"path": str(tmp_path / "first"), "scale": 0.5}

    sd = model(folders["epsilon"], learned=learned)
    with torch.no_grad():
        before = predicted(sd)
    second = tuning.tunable(sd, tuned_by("adapter"))
    asking = {id(value) for value in sd.unet.parameters() if value.requires_grad}
    assert asking == {id(value) for value in second.free} and len(second.free) == len(tuned.free)
    with torch.no_grad():
        torch.testing.assert_close(predicted(sd), before, rtol=0, atol=1e-6)  # the first one still acts
    step(sd, second)
    second.freeze()
    second.save(tmp_path / "second")
    with torch.no_grad():
        both = predicted(model(folders["epsilon"], learned=[learned, str(tmp_path / "second")]))
        torch.testing.assert_close(both, predicted(sd), rtol=0, atol=1e-5)
        tuning.load(other := model(folders["epsilon"], learned=learned), tmp_path / "second", "adapter", "run")
        torch.testing.assert_close(predicted(other), predicted(sd), rtol=0, atol=1e-5)
    with pytest.raises(UsageError, match="method.what=attention: not on a model with a LoRA"):
        tuning.check(tuned_by("attention"), sd)


def test_a_word_of_the_negative_prompt_is_not_learned(folders: dict[str, Path], tried: Any) -> None:
    with pytest.raises(UsageError, match="method.token=<new>: model.negative_prompt holds this word"):
        tuning.check(tuned_by("token"), model(folders["epsilon"], negative_prompt="bad <NEW>"))
    tried("refused")


def test_an_adapter_s_file_says_its_strength_as_diffusers_reads_it(folders: dict[str, Path], tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    tuning.tunable(model(folders["epsilon"]), tuned_by("adapter")).save(tmp_path)
    *_, metadata = StableDiffusionPipeline.lora_state_dict(tmp_path, return_lora_metadata=True)
    assert (metadata["unet.r"], metadata["unet.lora_alpha"], metadata["unet.use_rslora"]) == (2, 2, False)
    assert set(metadata["unet.target_modules"]) == {"to_q", "to_k", "to_v", "to_out.0"}


@pytest.mark.parametrize("what", ["adapter", "token", "weights"])
def test_what_was_not_saved_is_not_passed_over(folders: dict[str, Path], tmp_path: Path, what: str, tried: Any) -> None:
    sd = model(folders["epsilon"])
    with pytest.raises(UsageError, match=f"run={tmp_path}: has no .*method.what={what}.*run.fresh=true"):
        tuning.load(sd, tmp_path, what, "run")
    tried("refused")


def test_a_word_that_the_model_has_learned_is_not_learned_again(folders: dict[str, Path], tmp_path: Path, tried: Any) -> None:
    tuning.tunable(model(folders["epsilon"]), tuned_by("token")).save(tmp_path)
    sd = model(folders["epsilon"], learned=str(tmp_path))
    for token in ("<new>", "<NEW>", "<new>_1"):
        with pytest.raises(UsageError, match="model.learned has this word already"):
            tuning.check(tuned_by("token", token=token), sd)
        tried("refused")


def test_a_new_word_starts_at_the_given_words_and_is_used_in_every_prompt_but_the_empty_one_s(folders: dict[str, Path]) -> None:
    sd = model(folders["epsilon"])
    table = sd.text_encoder.get_input_embeddings().weight
    (free,) = tuning.tunable(sd, tuned_by("token", initial="cat", num_vectors=1)).free
    assert torch.equal(free[0], table[sd.tokenizer("cat", add_special_tokens=False).input_ids[0]])
    with torch.no_grad():
        # Beginning as "cat", it is read as "cat".
        torch.testing.assert_close(predicted(sd, "<new> a"), predicted(model(folders["epsilon"]), "cat a"), rtol=0, atol=1e-6)
        torch.testing.assert_close(predicted(sd, "a"), predicted(sd, "<new> a"), rtol=0, atol=0)
    uncond = sd.denoiser([Task(id="0", prompt="a")]).uncond.tokens
    assert torch.equal(uncond, model(folders["epsilon"]).denoiser([Task(id="0", prompt="a")]).uncond.tokens)


def test_a_long_prompt_leaves_room_for_the_words(folders: dict[str, Path], tmp_path: Path) -> None:
    sd = model(folders["epsilon"])  # reads 12 tokens, two of them the start and the end
    prompt = [Task(id="0", prompt=" ".join(["cat"] * 9))]
    sd.check(prompt)
    with pytest.raises(UsageError, match="reads 8"):
        sd.check(prompt, reserved=2)
    tuning.tunable(sd, tuned_by("token")).save(tmp_path)
    learned = model(folders["epsilon"], learned=str(tmp_path))
    with pytest.raises(UsageError, match="prompt of 11 tokens .* reads 10"):
        learned.check(prompt)
    learned.check([Task(id="0", prompt=" ".join(["cat"] * 8))])
    # What it is spelt with, six letters and signs, is not counted where it is said.
    learned.check([Task(id="0", prompt=" ".join(["<new>", *["cat"] * 8]))])
    with pytest.raises(UsageError, match="prompt of 12 tokens .* reads 10"):
        learned.check([Task(id="0", prompt=" ".join(["<new> <NEW>", *["cat"] * 8]))])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token": "cat"}, "method.token=cat"),
        ({"token": "ca"}, "method.token=ca: .*a piece of words"),
        ({"token": "CA"}, "method.token=CA: .*a piece of words"),
        ({"token": "t"}, "method.token=t"),
        ({"initial": "two cat"}, "method.initial=two cat"),
    ],
)
def test_wrong_words_are_refused(folders: dict[str, Path], options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tuning.check(tuned_by("token", **options), model(folders["epsilon"]))


@pytest.mark.parametrize(
    ("what", "dtype"), [("weights", "bfloat16"), ("attention", "float16"), ("adapter", "float16"), ("token", "float16")]
)
def test_types_in_which_updates_would_be_lost_are_refused(folders: dict[str, Path], what: str, dtype: str) -> None:
    with pytest.raises(UsageError, match=f"dtype={dtype}"):
        tuning.check(tuned_by(what), model(folders["epsilon"], dtype=dtype))
    tuning.check(tuned_by(what), model(folders["epsilon"]))

"""guidedgen from Python: what it gives equals the command line's, pipelines are used as they are, and errors are one line."""

import gc
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import guidedgen
from guidedgen.api import guiding
from guidedgen.methods.code import Code
from guidedgen.models import families, lent
from guidedgen.process.schedulers import Ddpm
from guidedgen.runs import composition, experiment, preparation

ROOT = Path(__file__).resolve().parent.parent
GENERATOR = ROOT / "guidedgen" / "lab" / "weights" / "generator"
PROMPTS = ["a red circle above a blue ring", "a yellow star"]
SHORT: dict[str, Any] = {"num_particles": 2, "block_size": 2, "num_steps": 4}
LINE = ["method=code", "metrics=none", "tracker=none", "device=cpu", "method.num_particles=2", "method.block_size=2",
        "scheduler.num_steps=4"]  # fmt: skip


@pytest.fixture(scope="module")
def pipeline() -> Any:
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    return StableDiffusionPipeline.from_pretrained(GENERATOR)


def redness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    assert len(images) == len(prompts)
    return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))


def drawn(outputs: Path, *overrides: str) -> list[bytes]:
    """The pixels that a command draws, prompt by prompt."""
    job = preparation.prepare(composition.composed([*LINE, f"outputs={outputs}", *overrides]))
    experiment.run(job)
    return [Image.open(job.folder.path / sample.image).tobytes() for sample in job.samples]


def pixels(result: guidedgen.Result) -> list[bytes]:
    return [image.tobytes() for image in result.images if image is not None]


def test_pictures_are_the_command_line_s(pipeline: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a model by name, of a loaded pipeline, and of the same prompts in a file."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    expected = drawn(tmp_path / "line", "dataset=text", f"dataset.path={tmp_path}/prompts.txt")
    capsys.readouterr()
    named = guidedgen.guide("lab", PROMPTS, method="code", reward="aesthetic", device="cpu", **SHORT)
    assert capsys.readouterr().out == ""
    assert pixels(named) == expected
    given = guidedgen.guide(pipeline, PROMPTS, method="code", reward="aesthetic", like="lab", **SHORT)
    assert pixels(given) == expected
    assert pixels(given.base) == pixels(named.base) != expected
    assert given.scores == named.scores and given.scores.keys() == {"aesthetic"}
    assert given.prompts == PROMPTS and given.seeds == [0, 0] and given.folder is None
    assert given.cost["nfe"] == named.cost["nfe"] == 2 * 2 * 3 + 2
    assert [event["event"] for event in given.trace[0]] == ["select", "select"]
    assert given.grid().size == (128, 128)


@pytest.mark.parametrize("family", ["flow", "turbo"])
def test_pipelines_of_other_kinds(family: str, tmp_path: Path) -> None:
    """The flow's attention is replaced while it runs, which has to be undone."""
    from diffusers import DiffusionPipeline

    like = f"lab_{family}"
    if family == "flow":
        pipeline = DiffusionPipeline.from_pretrained(GENERATOR.parent / "flow", text_encoder_3=None, tokenizer_3=None)
        network, more = pipeline.transformer, {}
    else:
        pipeline = DiffusionPipeline.from_pretrained(GENERATOR)
        pipeline.unet = type(pipeline.unet).from_pretrained(GENERATOR.parent / "turbo" / "unet")
        pipeline.scheduler = pipeline.scheduler.from_config(pipeline.scheduler.config, prediction_type="v_prediction")
        network, more = pipeline.unet, {}
    before = {name: id(module) for name, module in network.named_modules()}
    processors = {name: id(processor) for name, processor in network.attn_processors.items()}
    result = guidedgen.guide(pipeline, PROMPTS[:1], method="base", reward=None, like=like, num_steps=2, **more)
    named = guidedgen.guide(like, PROMPTS[:1], method="base", reward=None, device="cpu", num_steps=2)
    assert pixels(result) == pixels(named)
    assert before == {name: id(module) for name, module in network.named_modules()}
    assert processors == {name: id(processor) for name, processor in network.attn_processors.items()}


def test_a_pipeline_is_as_it_was(pipeline: Any) -> None:
    first = next(pipeline.unet.parameters())
    first.requires_grad_(True)
    pipeline.text_encoder.train()
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    guidedgen.guide(pipeline, PROMPTS[:1], method="codex", reward=redness, like="lab", num_steps=4, num_particles=1)
    assert first.requires_grad and pipeline.text_encoder.training and first.grad is None
    assert all(torch.equal(value, before[name]) for name, value in pipeline.unet.state_dict().items())
    pipeline.text_encoder.eval()
    assert lent.networks("") is None and not lent._LENT


def test_changes_of_a_pipeline_are_used(pipeline: Any) -> None:
    """It is the networks as they are now that draw, not the files they came from."""
    plain = guidedgen.guide(pipeline, PROMPTS[:1], method="base", reward=None, like="lab", num_steps=2)
    weight = pipeline.unet.conv_out.weight
    kept = weight.data.clone()
    weight.data *= 0.5
    other = guidedgen.guide(pipeline, PROMPTS[:1], method="base", reward=None, like="lab", num_steps=2)
    weight.data = kept
    again = guidedgen.guide(pipeline, PROMPTS[:1], method="base", reward=None, like="lab", num_steps=2)
    assert pixels(plain) == pixels(again) != pixels(other)


def test_a_kept_run_is_named_by_the_weights(pipeline: Any, tmp_path: Path) -> None:
    def kept() -> guidedgen.Result:
        return guidedgen.guide(pipeline, PROMPTS[:1], method="base", reward=None, like="lab", num_steps=2, outputs=tmp_path)

    first, again = kept(), kept()
    assert first.folder == again.folder and first.folder.is_relative_to(tmp_path)
    pipeline.unet.conv_out.bias.data += 0.1
    other = kept()
    pipeline.unet.conv_out.bias.data -= 0.1
    assert other.folder != first.folder and pixels(other) != pixels(first)
    read = guidedgen.read_run(first.folder)
    assert pixels(read) == pixels(first) and read.prompts == first.prompts and read.cost == first.cost
    assert len(guidedgen.read_study(first.folder.parent).runs) == 2


def test_pictures_to_start_from(tmp_path: Path) -> None:
    """In memory or in a file: those of the command line, which the chain starts from and not from noise."""
    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "red.png")
    given: dict[str, Any] = {
        "method": "sdedit",
        "reward": None,
        "base": False,
        "device": "cpu",
        "num_steps": 20,
        "noise_ratio": 0.05,
    }
    kept = guidedgen.guide("lab", PROMPTS[:1], images=[tmp_path / "red.png"], **given)
    held = guidedgen.guide("lab", PROMPTS[:1], images=[Image.open(tmp_path / "red.png")], **given)
    free = guidedgen.guide("lab", PROMPTS[:1], method="base", reward=None, base=False, device="cpu", num_steps=4)
    near, far = (
        (torch.tensor(list(result.images[0].tobytes())).view(-1, 3).float() - torch.tensor([200.0, 30, 30])).abs().mean()
        for result in (kept, free)
    )
    assert near < far / 2
    assert len(held) == 1 and held.cost["nfe"] == kept.cost["nfe"] == 2 * 1


def test_a_run_without_a_picture_is_an_error() -> None:
    """And does not end the process."""

    def broken(images: Tensor, prompts: Sequence[str]) -> Tensor:
        raise ValueError("no")

    with pytest.raises(RuntimeError, match="none of 1 samples came out, the last failed as: ValueError: no"):
        guidedgen.guide("lab", PROMPTS[1], reward=broken, device="cpu", base=False, **SHORT)


def test_a_function_guides() -> None:
    result = guidedgen.guide("lab", PROMPTS[1], method="codex", reward=redness, device="cpu", num_steps=8, block_size=2,
                             gradient_block_size=1, num_particles=2, samples_per_prompt=2)  # fmt: skip
    assert result.scores.keys() == {"redness"} and result.seeds == [0, 1]
    for image, score in zip(result.images, result.scores["redness"], strict=True):
        levels = torch.tensor(list(image.tobytes())).view(-1, 3).double() / 255
        assert score == pytest.approx(float(levels[:, 0].mean() - levels[:, 2].mean()), abs=1e-6)
    assert sum(result.scores["redness"]) > sum(result.base.scores["redness"])
    assert result.metrics["scores"]["function"]["shares_guide"]  # though it runs on no network


def test_scores_without_gradient_search_and_do_not_guide_gradients() -> None:
    def brightness(images: Tensor, prompts: Sequence[str]) -> list[float]:
        return [float(image.detach().mean()) for image in images]

    found = guidedgen.guide("lab", PROMPTS[1], reward=brightness, device="cpu", base=False, **SHORT)
    assert found.base is None and len(found.scores["brightness"]) == 1
    with pytest.raises(guidedgen.UsageError, match="scores have no gradient, and this method needs one"):
        guidedgen.guide("lab", PROMPTS[1], method="codex", reward=brightness, device="cpu", num_steps=4, gradient_block_size=1)


REFUSED = {
    "unknown option": ({"num_particle": 2}, r"num_particle: no such option of method=code.*did you mean num_particles\?"),
    "unknown method": ({"method": "cod"}, "method=cod: no such option; did you mean code"),
    "unknown reward": ({"reward": "beauty"}, "reward=beauty: no such option"),
    "wrong value": ({"num_particles": 0}, "method.num_particles=0: must be at least 1"),
    "no prompt": ({"prompts": []}, r"dataset.prompts=\[\]: is empty"),
    "empty prompt": ({"prompts": [" "]}, "dataset.prompts= : is empty"),
    "like": ({"like": "sd15"}, "like=sd15: is for pipelines"),
    "no model": ({"model": "no/such/folder"}, "model.path=no/such/folder"),
    "another pipeline": ({"model": object()}, "model: a object is not supported; supported: StableDiffusionPipeline"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_wrong_is_said_in_one_line(kind: str) -> None:
    options, message = REFUSED[kind]
    given = {"model": "lab", "prompts": PROMPTS, **options}
    with pytest.raises(guidedgen.UsageError, match=f"^{message}") as caught:
        guidedgen.guide(given.pop("model"), given.pop("prompts"), **given)
    assert "\n" not in str(caught.value)


def test_pipelines_that_cannot_be_used_are_refused(pipeline: Any) -> None:
    pipeline.unet._hf_hook = object()
    with pytest.raises(guidedgen.UsageError, match="its unet is moved by accelerate's hooks"):
        guidedgen.guide(pipeline, PROMPTS)
    del pipeline.unet._hf_hook


def test_a_loaded_model_outlives_the_name_of_its_pipeline() -> None:
    """Nothing of it is loaded when the pipeline goes out of sight; what was lent is given back with the model."""
    from diffusers import StableDiffusionPipeline

    model = guidedgen.load_model(StableDiffusionPipeline.from_pretrained(GENERATOR), like="lab")
    problem = guidedgen.Problem.from_model(model, PROMPTS[:1], Ddpm(num_steps=2))
    with torch.no_grad():
        assert problem.denoise(problem.start(), problem.grid[0]).x_0.isfinite().all()
    path = model.path
    assert lent.networks(path) is not None
    del model, problem
    gc.collect()
    assert lent.networks(path) is None


def test_settings_follow_the_kind_of_pipeline() -> None:
    """Every class that a family takes has an option whose settings it gets; FLUX has two kinds."""
    for family in families.FAMILIES:
        for name in family.FOLDER.PIPELINES:
            network = types.SimpleNamespace(config=types.SimpleNamespace(guidance_embeds=True))
            made = type(name, (), {"transformer": network})()
            assert (composition.composed([f"model={guiding._like(made)}"]).model._target_).endswith(family.__name__)
    network.config.guidance_embeds = False
    assert guiding._like(type("FluxPipeline", (), {"transformer": network})()) == "flux_schnell"


def test_a_method_by_hand(pipeline: Any) -> None:
    """Five lines; and the same latents as the library's own pieces give."""
    model = guidedgen.load_model(pipeline, like="lab")
    problem = guidedgen.Problem.from_model(model, PROMPTS, Ddpm(num_steps=4), reward=redness, seed=3)
    with torch.no_grad():
        images = problem.decode(Code(num_particles=2, block_size=2)(problem))
    assert images.shape == (2, 3, 64, 64) and 0 <= float(images.min()) <= float(images.max()) <= 1
    named = guidedgen.load_model("lab", device="cpu")
    other = guidedgen.Problem.from_model(named, PROMPTS, Ddpm(num_steps=4), reward=redness, seed=3)
    with torch.no_grad():
        torch.testing.assert_close(images, named.decode(Code(num_particles=2, block_size=2)(other)), rtol=0, atol=1e-5)


def test_run_and_compose_are_the_command_line(tmp_path: Path) -> None:
    overrides = [*LINE, "dataset=prompt", f'dataset.prompt="{PROMPTS[0]}"', f"outputs={tmp_path}"]
    result = guidedgen.run(guidedgen.compose(overrides), quiet=True)
    assert result.folder is not None and (result.folder / "DONE").exists()
    assert pixels(result) == drawn(tmp_path / "other", *overrides[len(LINE) : -1])
    assert pixels(guidedgen.run(overrides, quiet=True)) == pixels(result)
    with pytest.raises(guidedgen.UsageError, match="holds no records"):
        guidedgen.read_run(tmp_path)


def test_names_are_there_without_loading_anything() -> None:
    code = "import guidedgen, sys; dir(guidedgen); print('torch' in sys.modules, guidedgen.UsageError.__name__, guidedgen.__all__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"False UsageError {guidedgen.__all__}\n"
    assert all(getattr(guidedgen, name).__doc__ for name in guidedgen.__all__)
    with pytest.raises(AttributeError, match="no attribute 'guidance'"):
        guidedgen.guidance  # noqa: B018

"""OpenClip computes what open_clip's own pipelines compute, from files that hold tensors only."""

import json
from pathlib import Path

import half
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from guidedgen.basics import images
from guidedgen.basics.errors import UsageError
from guidedgen.basics.tasks import Task
from guidedgen.rewards.hps import Hps
from guidedgen.rewards.style_clip_rn50 import StyleClipRn50
from guidedgen.zoo import openclip
from guidedgen.zoo.openclip import OpenClip

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VISION = {
    "resnet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16, "patch_size": None},
    "vit": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
}
SIZES = [(32, 32), (80, 80), (48, 80), (75, 50)]


def build(kind: str, seed: int = 0):
    """A description and a network of random weights."""
    from open_clip.model import CLIP

    description = {"embed_dim": 24, "quick_gelu": kind == "resnet", "vision_cfg": VISION[kind], "text_cfg": TEXT}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = CLIP(**description).eval()
        for name, parameter in network.named_parameters():
            if name.endswith("bn3.weight"):  # zero at first, which switches blocks off
                torch.nn.init.ones_(parameter)
    return description, network


def save(folder: Path, kind: str, seed: int = 0) -> dict[str, str]:
    """What OpenClip needs for such a network."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    description, network = build(kind, seed)
    (folder / "model.json").write_text(json.dumps(description))
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    return {"architecture": str(folder / "model.json"), "path": str(folder)}


@pytest.fixture(scope="module", params=["resnet", "vit"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    return request.param, save(tmp_path_factory.mktemp(request.param), request.param)


def picture(height: int, width: int) -> torch.Tensor:
    """Waves, in 8 bits."""
    y, x = torch.meshgrid(torch.linspace(0, 9, height), torch.linspace(0, 7, width), indexing="ij")
    waves = torch.stack([(x + y).sin(), (x * y / 5).cos(), (2 * x - y).sin()]) * 0.4 + 0.5
    return images.to_bytes(waves[None]).float() / 255


@pytest.mark.parametrize("size", SIZES)
def test_image_embedding_is_that_of_open_clips_pipeline(saved, size: tuple[int, int]):
    from open_clip import image_transform

    kind, options = saved
    clip, (_, network) = OpenClip(name="tiny", **options), build(kind)
    transform = image_transform(32, is_train=False, mean=images.CLIP_MEAN, std=images.CLIP_STD)
    reference = network.encode_image(transform(images.to_pil(picture(*size))[0])[None], normalize=True)
    embedding = clip.encode_image(picture(*size))
    # Where nothing is resized the pipelines are one; otherwise Pillow's rounds to 8 bits, half a level per pixel at most.
    torch.testing.assert_close(embedding, reference, rtol=0, atol=1e-6 if size == (32, 32) else 2e-3)
    assert (clip.dim, clip.size) == (24, 32)


@pytest.mark.parametrize("size", SIZES)
def test_padding_is_that_of_hpsv2(saved, size: tuple[int, int]):
    """hpsv2/src/open_clip/transform.py, ResizeMaxSize on a tensor, through torchvision as it does it."""
    import torchvision.transforms.functional as TF
    from torchvision.transforms import InterpolationMode

    kind, options = saved
    scale = 32 / max(size)
    new = [round(side * scale) for side in size]
    pixels = TF.resize(picture(*size), new, InterpolationMode.BICUBIC)
    down, right = 32 - new[0], 32 - new[1]
    pixels = TF.pad(pixels, [right // 2, down // 2, right - right // 2, down - down // 2])
    reference = build(kind)[1].encode_image(TF.normalize(pixels, images.CLIP_MEAN, images.CLIP_STD), normalize=True)
    torch.testing.assert_close(
        OpenClip(name="tiny", fit="pad", **options).encode_image(picture(*size)), reference, rtol=0, atol=1e-6
    )


def test_text_embedding_and_scale_are_open_clips(saved):
    import open_clip

    kind, options = saved
    clip, (_, network) = OpenClip(name="tiny", **options), build(kind)
    texts = ["a cat", "a much longer text about a dog", "cat " * 90]
    torch.testing.assert_close(clip.encode_text(texts), network.encode_text(open_clip.tokenize(texts), normalize=True))
    assert clip.logit_scale == pytest.approx(1 / 0.07, rel=1e-6)  # where CLIPs start


def test_released_architectures_are_described():
    """RN50 with OpenAI's activation, and HPS's ViT-H-14 with the plain one."""
    rn50, vit = (openclip._describe(name, "k") for name in ("RN50-quickgelu", "ViT-H-14"))
    assert (rn50["embed_dim"], rn50["quick_gelu"], rn50["vision_cfg"]["layers"]) == (1024, True, [3, 4, 6, 3])
    assert (vit["embed_dim"], vit.get("quick_gelu", False), vit["vision_cfg"]["image_size"]) == (1024, False, 224)


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_gradient_reaches_the_pixels(tmp_path: Path, fit):
    """Directional derivatives in float64, through Hps and through both preparations of StyleClipRn50."""
    clip = OpenClip(name="tiny", fit=fit, **save(tmp_path / fit, "resnet", seed=1))
    clip.network.double()
    (tmp_path / "reference.png").write_bytes(images.png(picture(40, 36)[0]))
    style = {"clip": clip, "image": str(tmp_path / "reference.png")}
    generator = torch.Generator().manual_seed(1)
    x = 0.1 + 0.8 * torch.rand(2, 3, 45, 40, dtype=torch.float64, generator=generator)
    direction = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    tasks, h = [Task(id=str(i), prompt="a cat") for i in range(2)], 1e-6
    for reward in (Hps(clip=clip), StyleClipRn50(**style), StyleClipRn50(**style, published_code_range=True)):
        with torch.inference_mode():
            reward(x, tasks)  # texts and references first met here can be differentiated by later
        [gradient] = torch.autograd.grad(reward(x.requires_grad_(), tasks).sum(), x)
        difference = (reward(x.detach() + h * direction, tasks) - reward(x.detach() - h * direction, tasks)).sum() / (2 * h)
        torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-4, atol=1e-7)


def test_a_checkpoint_in_half_precision(tmp_path: Path):
    """As HPS_v2.1_compressed.pt is: a dictionary that holds the state dict."""
    options = save(tmp_path, "vit", seed=2)
    _, network = build("vit", seed=2)
    state = {name: value.half() for name, value in network.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "HPS.pt")
    clip = OpenClip(name="tiny", **options, filename="HPS.pt")
    assert {p.dtype for p in clip.network.parameters()} == {torch.float32}
    torch.testing.assert_close(
        clip.encode_image(picture(32, 32)), OpenClip(name="tiny", **options).encode_image(picture(32, 32)), rtol=0, atol=2e-3
    )


def test_lazy_shared_frozen_and_without_touching_the_random_state(tmp_path: Path):
    options = save(tmp_path, "vit", seed=3)
    before, misses = torch.get_rng_state(), openclip._load.cache_info().misses
    first, second = (OpenClip(name=name, **options) for name in ("reward", "metric"))
    assert openclip._load.cache_info().misses == misses
    assert first.network is second.network and torch.equal(torch.get_rng_state(), before)
    assert not first.network.training and not any(p.requires_grad for p in first.network.parameters())


def test_loaded_inside_inference_mode_still_differentiable(tmp_path: Path):
    clip, x = OpenClip(name="tiny", **save(tmp_path, "vit", seed=4)), picture(32, 32)
    with torch.inference_mode():
        clip.encode_image(x)
    [gradient] = torch.autograd.grad(clip.encode_image(x.requires_grad_())[0, 0], x)
    assert gradient.abs().sum() > 0


def test_from_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--org--name"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    options = save(repository / "snapshots" / commit, "resnet", seed=5)
    cached = OpenClip(name="tiny", architecture=options["architecture"], path="org/name")
    torch.testing.assert_close(
        cached.encode_image(picture(32, 32)), F.normalize(build("resnet", 5)[1].encode_image(_prepared()), dim=-1)
    )


def _prepared() -> torch.Tensor:
    return images.normalise(picture(32, 32), images.CLIP_MEAN, images.CLIP_STD)


def refusal(call) -> str:
    with pytest.raises(UsageError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_wrong_is_one_line(tmp_path: Path):
    options = save(tmp_path, "vit", seed=6)
    other = {**options, "architecture": "ViT-H14"}
    assert "open_clip has no such model; did you mean ViT-H-14?" in refusal(lambda: OpenClip(name="x", **other, key="zoo.hps.path"))
    assert "not a plain CLIP" in refusal(lambda: OpenClip(name="x", **{**options, "architecture": "coca_ViT-B-32"}))
    assert "has no none.pt" in refusal(lambda: OpenClip(name="x", **options, filename="none.pt"))
    assert "offline; fetch it with: python scripts/fetch.py org/none" in refusal(
        lambda: OpenClip(name="x", architecture="ViT-H-14", path="org/none")
    )
    torch.save({"state_dict": torch.nn.Linear(2, 2)}, tmp_path / "pickle.pt")
    assert "pickled objects are refused" in refusal(lambda: OpenClip(name="x", **options, filename="pickle.pt").network)
    torch.save({"epoch": 1}, tmp_path / "empty.pt")
    assert "not a state dict of tensors" in refusal(lambda: OpenClip(name="x", **options, filename="empty.pt").network)
    state = build("vit", 6)[1].state_dict()
    del state["visual.proj"]
    torch.save(state, tmp_path / "short.pt")
    assert "1 tensors differ, visual.proj first" in refusal(lambda: OpenClip(name="x", **options, filename="short.pt").network)


def test_range_is_checked(saved):
    with pytest.raises(ValueError, match=r"tiny: expected values in \[0, 1\]"):
        OpenClip(name="tiny", **saved[1]).encode_image(2 * picture(32, 32) - 1)


def test_the_lab_says_what_to_choose_instead():
    assert "reward=hps; choose reward=pickscore" in refusal(lambda: openclip.absent(name="hps", instead="pickscore"))


def test_square_pictures_need_no_padding():
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(openclip.pad(x, 32), x)
    assert Image.fromarray(images.to_bytes(openclip.pad(x[..., :16], 32))[0, 0].numpy()).getbbox() == (8, 0, 24, 32)


def test_half_precision(tmp_path: Path):
    options = save(tmp_path, "resnet", seed=1)
    full, rounded = (OpenClip(name="tiny", dtype=kind, **options) for kind in ("float32", "float16"))
    towards = torch.randn(full.dim, generator=torch.Generator().manual_seed(1))
    half.check(lambda x: full.encode_image(x) @ towards, lambda x: rounded.encode_image(x) @ towards, picture(45, 40), atol=0.02)
    torch.testing.assert_close(rounded.encode_text(["a cat"]), full.encode_text(["a cat"]), rtol=0, atol=0.01)
    assert rounded.logit_scale == full.logit_scale

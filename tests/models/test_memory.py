"""What is on the device, and when: text encoders leave it before the denoising network comes."""

import functools
import json
import math
import shutil
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from every_method import METHODS, check_method
from omegaconf import OmegaConf, open_dict
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.tasks import Task
from guidedgen.cli import command_line
from guidedgen.gradients.memory import Alive
from guidedgen.models import quantization
from guidedgen.models.latent import LatentModel
from guidedgen.models.offload import Alternating
from guidedgen.models.prompts import Prompts
from guidedgen.models.stable_diffusion import StableDiffusion
from guidedgen.models.stable_diffusion_3 import StableDiffusion3
from guidedgen.process import Tuning
from guidedgen.process.schedulers import Flow
from guidedgen.runs import composition, config, experiment, preparation
from guidedgen.zoo.pretrained import load_pretrained

PROMPTS = ("a cat", "two dogs, red", "", "a", "cat cat")


def tasks(prompts: Sequence[str] = PROMPTS) -> list[Task]:
    return [Task(id=str(i), prompt=prompt) for i, prompt in enumerate(prompts)]


class Loads:
    """The parts that are loaded, each with the text encoders that are there at that time, in the order in which they come."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.parts: list[tuple[str, int]] = []
        self._encoders: list[weakref.ref[Any]] = []
        load = LatentModel.load_network

        def noted(model: LatentModel, kind: Any, part: str, *rest: Any, **options: Any) -> Any:
            self.parts.append((part, sum(encoder() is not None for encoder in self._encoders)))
            network = load(model, kind, part, *rest, **options)
            if part.startswith("text_encoder"):
                self._encoders.append(weakref.ref(network))
            return network

        monkeypatch.setattr(LatentModel, "load_network", noted)

    def of(self, beginning: str) -> int:
        return sum(part.startswith(beginning) for part, _ in self.parts)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    return Loads(monkeypatch)


# Text encoders


def test_text_encoders_are_gone_when_the_denoiser_comes(make: Callable[..., LatentModel], loads: Loads) -> None:
    model = make()
    model.load(tasks())
    *encoders, network, vae = loads.parts
    assert [part for part, _ in encoders] == [part for part in model.LEARNABLE.networks if part.startswith("text_encoder")]
    assert (network, vae) == ((model.LEARNABLE.denoiser, 0), ("vae", 0))
    assert not set(model.READERS) & set(vars(model))
    model.denoiser(tasks())
    model.load(tasks(PROMPTS[:2]))
    model.denoiser(tasks(PROMPTS[1:3]))
    assert len(loads.parts) == len(encoders) + 2  # nothing was needed again


def test_what_is_read_is_what_text_encoders_say(make: Callable[..., LatentModel]) -> None:
    """Of each prompt, whether it is kept, and whatever it is read with."""
    model, other = make(), make()
    model.load(tasks())
    cond, uncond = other.condition(tasks())
    denoise = model.denoiser(tasks())
    for ours, theirs in ((denoise.cond, cond), (denoise.uncond, uncond)):
        torch.testing.assert_close(ours.tokens, theirs.tokens, rtol=0, atol=1e-6)
        assert (ours.pooled is None) == (theirs.pooled is None)
        if ours.pooled is not None:
            torch.testing.assert_close(ours.pooled, theirs.pooled, rtol=0, atol=1e-6)
    for prompts in (PROMPTS[1:2], PROMPTS[::-1], PROMPTS[:2] * 2):
        for model_ in (model, make(), other):
            found = model_.denoiser(tasks(prompts))
            for i, prompt in enumerate(prompts):
                assert torch.equal(found.cond.tokens[i], denoise.cond.tokens[PROMPTS.index(prompt)])
            assert torch.equal(found.uncond.tokens, denoise.uncond.tokens)
    kept = denoise.cond.tokens.clone()
    model.denoiser(tasks()).cond.tokens.zero_()
    model.denoiser(tasks(PROMPTS[:1])).cond.tokens.zero_()
    assert torch.equal(model.denoiser(tasks()).cond.tokens, kept)


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_of_many_prompts_some_are_kept(make: Callable[..., LatentModel], loads: Loads, most: int) -> None:
    model, whole = make(), make()
    vars(model)["prompts"] = Prompts(most)
    found = []
    model.load(tasks())
    for prompt in PROMPTS:
        found.append(model.denoiser(tasks([prompt])).cond.tokens)
        assert len(model.prompts._kept) <= most
        assert not set(model.READERS) & set(vars(model))
    assert loads.of("text_encoder") == -(-len(PROMPTS) // most) * sum(part.startswith("text") for part in model.LEARNABLE.networks)
    assert torch.equal(torch.cat(found), whole.denoiser(tasks()).cond.tokens)
    assert loads.of(model.LEARNABLE.denoiser) == 1


def test_the_negative_prompt_is_read_once(make: Callable[..., LatentModel], monkeypatch: pytest.MonkeyPatch) -> None:
    """However many prompts there are; and again where what it is read with is changed."""
    model, reads = make(), []
    own = type(model).unconditional
    monkeypatch.setattr(type(model), "unconditional", lambda given: reads.append(1) or own(given))
    model.load(tasks())
    for prompts in (PROMPTS[:2], PROMPTS, PROMPTS[2:]):
        model.denoiser(tasks(prompts))
    assert len(reads) == 1
    model.keep_readers()
    for _ in range(2):
        model.denoiser(tasks())
    assert len(reads) == 3


def test_prompts_that_were_not_announced_are_read(make: Callable[..., LatentModel], loads: Loads) -> None:
    model = make()
    model.load(tasks(PROMPTS[:1]))
    assert torch.equal(model.denoiser(tasks(PROMPTS[:2])).cond.tokens, make().denoiser(tasks(PROMPTS[:2])).cond.tokens)
    assert not set(model.READERS) & set(vars(model))
    model.load()  # without tasks, everything stays
    assert set(model.READERS) <= set(vars(model))
    loads.parts.clear()
    model.denoiser(tasks())
    assert not loads.parts


def test_what_is_kept_can_be_differentiated_through(make: Callable[..., LatentModel]) -> None:
    """Also where it was read inside inference mode."""
    model = make(dtype="float64")
    with torch.inference_mode():
        model.load(tasks())
    denoise = model.denoiser(tasks(PROMPTS[:1]))
    embedding = denoise.conditioning.clone().requires_grad_()
    x_t = torch.randn(1, 1, *model.latent_shape, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    grid = model.schedule
    t = grid.at(400.0)
    eps = denoise.conditioned_on(embedding)(x_t, t).eps
    gradients = torch.autograd.grad(eps.square().sum(), [x_t, embedding])
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_a_word_that_is_learned_is_read_anew(folders: dict[str, Path]) -> None:
    from guidedgen.models import tuning

    model = StableDiffusion(path=str(folders["epsilon"]), name="tiny")
    model.load(tasks())
    before = model.denoiser(tasks()).conditioning
    tuned = tuning.tunable(model, Tuning(what="token", token="<effect>", num_vectors=1, initial=None, rank=4, seed=0))
    embeddings = model.denoiser(tasks()).conditioning
    assert embeddings.requires_grad and (embeddings - before).abs().amax((1, 2)).min() > 1e-3
    (gradient,) = torch.autograd.grad(embeddings.sum(), tuned.free)
    assert gradient.abs().max() > 0
    with torch.no_grad():
        tuned.free[0].mul_(2.0)
    assert (model.denoiser(tasks()).conditioning - embeddings).abs().max() > 1e-3
    model.load(tasks())  # what has been learned would be lost with the text encoder
    assert "text_encoder" in vars(model) and "words" in vars(model)


def test_a_run_and_its_unguided_one_read_prompts_once(sd3_folder: Path, tmp_path: Path, loads: Loads) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\ntwo dogs\na\n")
    cfg = composition.composed(
        [
            "model=sd3_medium", f"model.path={sd3_folder}", "zoo=lab", "metrics=none", "device=cpu", "dataset=text",
            f"dataset.path={file}", "tracker=none", f"outputs={tmp_path}", "method=code", "method.num_particles=2", "batch_size=2",
            "reference=base", "scheduler.num_steps=3", "reward=compressibility",
        ]
    )  # fmt: skip
    job = preparation.prepare(cfg)
    assert job.base is not None
    experiment.run(job)
    assert len(job.folder.records()) == 3 and len(job.base.folder.records()) == 3
    assert [part for part, _ in loads.parts] == ["text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae"]
    assert loads.parts[-2:] == [("transformer", 0), ("vae", 0)]


# Weights


class AliveOnHost(Alive):
    """Tensors on another device are not counted."""

    def size(self, storage: torch.UntypedStorage) -> int:
        return storage.nbytes() if storage.device.type == "cpu" else 0


def large(kind: str) -> Any:
    """A network of 30 MB in float32, no tensor of which is more than 1 MB."""
    from diffusers import SD3Transformer2DModel
    from transformers import T5Config, T5EncoderModel

    if kind == "diffusers":
        return SD3Transformer2DModel(
            sample_size=8, num_layers=8, attention_head_dim=32, num_attention_heads=8, caption_projection_dim=256,
            joint_attention_dim=256, pooled_projection_dim=64, pos_embed_max_size=8, in_channels=4, out_channels=4,
        )  # fmt: skip
    return T5EncoderModel(T5Config(d_model=256, d_ff=1024, num_layers=10, num_heads=4, vocab_size=128, d_kv=64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["diffusers", "transformers"])
def test_weights_are_copied_to_their_device_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, dtype: torch.dtype
) -> None:
    """The device "meta" holds nothing, so that whatever is alive meanwhile is the host's: the file's own pages and a tensor or two."""
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # other threads' tensors would not be counted
    network = large(kind)
    network.save_pretrained(tmp_path)
    total, largest = sum(p.nbytes for p in network.parameters()), max(p.nbytes for p in network.parameters())
    assert total > 20e6 and largest <= 2e6
    with AliveOnHost() as alive, pytest.raises(UsageError, match="no floating-point numbers"):
        load_pretrained(type(network), tmp_path, what="it", safetensors=True, device=torch.device("meta"), dtype=dtype)
    mapped = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert 0 < alive.peak < mapped + 2 * largest
    with AliveOnHost() as alive:
        loaded = load_pretrained(type(network), tmp_path, what="it", safetensors=True, device=torch.device("cpu"), dtype=dtype)
    assert alive.peak < mapped + sum(p.nbytes for p in loaded.parameters()) + 2 * largest
    for (name, ours), theirs in zip(loaded.named_parameters(), network.parameters(), strict=True):
        assert torch.equal(ours, theirs.to(ours.dtype)), name


# Offloading


class Turns:
    """Stands for a GPU: weights of a network that is not there are not numbers, so that whatever is computed with them is not."""

    def __init__(self) -> None:
        self.there: set[nn.Module] = set()
        self.log: list[tuple[str, ...]] = []  # which are there, after each change
        self._weights: dict[nn.Module, list[Tensor]] = {}

    def __call__(self, network: nn.Module, device: torch.device) -> None:
        if device.type == "cpu":
            self._weights[network] = [p.data for p in network.parameters()]
            for p in network.parameters():
                p.data = torch.full_like(p, math.nan)
            self.there.discard(network)
        else:
            for p, value in zip(network.parameters(), self._weights.pop(network), strict=True):
                p.data = value
            self.there.add(network)
        self.log.append(tuple(sorted(type(each).__name__ for each in self.there)))


def offloaded(model: LatentModel) -> tuple[LatentModel, Alternating, Turns]:
    """The model with its networks on a device that is not there."""
    turns = Turns()
    alternating = Alternating(torch.device("cuda"), turns)
    for network in (model.network, model.vae):
        alternating.add(network)
    assert not turns.there and all(p.isnan().all() for network in (model.network, model.vae) for p in network.parameters())
    return model, alternating, turns


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_the_same_with_networks_that_take_turns(sd3_folder: Path, name: str) -> None:
    """Also on the way back, whatever the engine."""
    make = functools.partial(StableDiffusion3, path=str(sd3_folder), name="tiny", guidance_scale=2.0, t5=False)
    model, _, turns = offloaded(make())
    samplers = Flow(num_steps=4), Flow(num_steps=4, eta=1.0)
    assert torch.equal(check_method(name, model, *samplers), check_method(name, make(), *samplers))
    through_both = ("codex", "classifier_guidance", "freedom", "universal", "tfg", "tds", "das", "psi_sampler")
    both, joint = ("AutoencoderKL", "SD3Transformer2DModel"), name in through_both
    assert both[1:] in turns.log and (both[:1] in turns.log or joint or name == "base")
    assert (both in turns.log) == joint  # both are there only where one graph goes through both


def test_networks_take_turns_in_every_family(make: Callable[..., LatentModel]) -> None:
    (model, alternating, turns), plain = offloaded(make(dtype="float64")), make(dtype="float64")
    x = torch.randn(2, 1, *model.latent_shape, generator=torch.Generator().manual_seed(0)).double()
    t = model.schedule.at(400.0)

    def gradient(of: LatentModel) -> tuple[Tensor, Tensor]:
        x_t = x.clone().requires_grad_()
        pictures = of.decode(of.denoiser(tasks(PROMPTS[:2]))(x_t, t).x_0[:, 0])
        return pictures.detach(), torch.autograd.grad(pictures[:, 0].mean(), x_t)[0]

    ours, theirs = gradient(model), gradient(plain)
    assert theirs[1].abs().max() > 0
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert len(turns.there) == 2  # one graph went through both
    with torch.no_grad():
        assert torch.equal(model.encode(theirs[0]), plain.encode(theirs[0]))
        assert turns.there == {model.vae}
        model.denoiser(tasks(PROMPTS[:2]))(x, t)
    assert turns.there == {model.network}
    alternating.leave()
    assert not turns.there


def test_a_network_stays_while_a_graph_holds_it(make: Callable[..., LatentModel]) -> None:
    model, alternating, turns = offloaded(make())
    x = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    pictures = model.decode(x)
    assert alternating.held(model.vae) and not alternating.held(model.network)
    alternating.leave()
    assert turns.there == {model.vae}
    del pictures
    assert not alternating.held(model.vae)
    again = checkpoint(model.decode, x, use_reentrant=False)
    assert not alternating.held(model.vae)  # it will be computed again
    alternating.leave()
    assert not turns.there
    (gradient,) = torch.autograd.grad(again[:, 0].mean(), x)
    assert turns.there == {model.vae} and gradient.isfinite().all() and gradient.abs().max() > 0


def test_offloading_is_refused_where_there_is_nothing_to_offload_to(make: Callable[..., LatentModel]) -> None:
    with pytest.raises(BadValue, match=r"offload.*must be false on device=cpu"):
        make(offload=True)
    for name in ("offload", "vae_tiling", "vae_slicing"):
        with pytest.raises(BadValue, match=f"{name}.*true or false"):
            make(**{name: "yes"})


def test_what_is_learned_is_not_offloaded(folders: dict[str, Path]) -> None:
    from guidedgen.models import tuning

    model = StableDiffusion(path=str(folders["epsilon"]), name="tiny", device="cuda", offload=True)
    with pytest.raises(UsageError, match=r"model\.offload=true: what is learned has to stay on the device"):
        tuning.check(Tuning(what="adapter", token="", num_vectors=1, initial=None, rank=4, seed=0), model)


# The autoencoder in parts


def test_slices_are_the_whole(make: Callable[..., LatentModel]) -> None:
    """As diffusers' enable_slicing has it, with gradients."""
    sliced, whole = make(vae_slicing=True, dtype="float64"), make(dtype="float64")
    x = torch.randn(3, *whole.latent_shape, generator=torch.Generator().manual_seed(0)).double()
    rows: list[int] = []
    sliced.vae.decoder.register_forward_hook(lambda _module, given, _output: rows.append(len(given[0])))
    found = []
    for model in (sliced, whole):
        latents = x.clone().requires_grad_()
        pictures = model.decode(latents)
        found.append((pictures, torch.autograd.grad(pictures[:, 0].square().sum(), latents)[0], model.encode(pictures.detach())))
    assert rows == [1, 1, 1]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_tiles_are_diffusers(make: Callable[..., LatentModel]) -> None:
    """Of pictures larger than the autoencoder's own, with gradients; smaller ones are decoded whole."""
    import diffusers

    tiled, whole = make(vae_tiling=True, dtype="float64"), make(dtype="float64")
    kind = whole.LEARNABLE.networks["vae"]
    theirs = getattr(diffusers, kind).from_pretrained(whole.folder / "vae").double()
    theirs.enable_tiling()
    assert (tiled.vae.use_tiling, whole.vae.use_tiling) == (True, False)
    if kind == "AutoencoderDC":  # whose tiles are of 512 pixels: here of 32, each 24 from the last
        for vae in (tiled.vae, theirs):
            vae.enable_tiling(32, 32, 24, 24)
    own = tiled.vae.tile_latent_min_height if kind == "AutoencoderDC" else tiled.vae.tile_latent_min_size
    for side in (own, 2 * own):
        x = torch.randn(1, whole.latent_shape[0], side, side, generator=torch.Generator().manual_seed(0)).double()
        found = []
        for decode in (
            tiled.decode, lambda z: (theirs.decode(whole.for_vae(z)).sample / 2 + 0.5).clamp(0, 1).float(), whole.decode
        ):  # fmt: skip
            latents = x.clone().requires_grad_()
            pictures = decode(latents)
            found.append((pictures.detach(), torch.autograd.grad(pictures[:, 0].square().sum(), latents)[0]))
        for ours, other in zip(found[0], found[1], strict=True):
            # The attention of AutoencoderDC is in float32, whatever the rest is in.
            torch.testing.assert_close(ours, other, rtol=0, atol=2e-5 if kind == "AutoencoderDC" else 1e-6)
        assert (side == own) == torch.allclose(found[0][0], found[2][0], rtol=0, atol=1e-6)  # the seams are blended
        encoded = theirs.encode(2 * found[0][0].double() - 1)
        mean = encoded.latent if kind == "AutoencoderDC" else encoded.latent_dist.mean
        torch.testing.assert_close(tiled.encode(found[0][0]), whole.from_vae(mean.float()))


# As commands


def given(folder: Path, tmp_path: Path, *more: str) -> list[str]:
    return [
        "model=sd3_medium", f"model.path={folder}", "zoo=lab", "metrics=none", "device=cpu", "dataset=prompt",
        "dataset.prompt=a cat", "tracker=none", f"outputs={tmp_path}", "method=base", "scheduler.num_steps=2", *more,
    ]  # fmt: skip


def test_options_for_less_memory_are_options_of_every_model() -> None:
    for file in sorted((config.CONF / "model").glob("*.yaml")):
        node = OmegaConf.load(file)
        assert (node.offload, node.vae_tiling, node.vae_slicing, node.quantization) == (False, False, False, None), file.name


def test_runs_keep_their_names(sd3_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that were made before there were these options."""
    plain = preparation.prepare(composition.composed(given(sd3_folder, tmp_path)))
    lacking = composition.composed(given(sd3_folder, tmp_path))
    with open_dict(lacking):
        for name in ("offload", "vae_tiling", "vae_slicing", "quantization"):
            del lacking.model[name]
    assert preparation.prepare(lacking).folder.path == plain.folder.path
    other = preparation.prepare(composition.composed(given(sd3_folder, tmp_path, "model.vae_tiling=true")))
    assert other.folder.path != plain.folder.path and other.model.vae_tiling
    with pytest.raises(SystemExit) as left:
        command_line.preflight(given(sd3_folder, tmp_path, "model.offload=true"), preparation.prepare)
    assert left.value.code == 2 and "model.offload=True: must be false on device=cpu" in capsys.readouterr().err


# Quantised weights


def test_quantised_weights_need_their_package_and_a_device_that_can(
    make: Callable[..., LatentModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    there: set[str] = set()
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda name: name in there or None)
    for kind, package in (("bnb_nf4", "bitsandbytes"), ("bnb_int8", "bitsandbytes"), ("torchao_int8", "torchao")):
        with pytest.raises(
            UsageError, match=f"model.quantization={kind}: needs the package {package}, which is not .* pip install"
        ):
            make(quantization=kind, device="cuda")
    there |= {"bitsandbytes", "torchao"}
    for kind in ("bnb_nf4", "bnb_int8"):
        with pytest.raises(UsageError, match=f"model.quantization={kind}: bitsandbytes computes on a GPU alone"):
            make(quantization=kind)
        assert make(quantization=kind, device="cuda").quantization == kind
    with pytest.raises(BadValue, match=r"quantization.*choose from bnb_nf4, bnb_int8, torchao_int8"):
        make(quantization="gguf")
    with pytest.raises(BadValue, match=r"quantization.*null with dtype=float64"):
        make(quantization="torchao_int8", dtype="float64")
    with pytest.raises(UsageError, match=r"model\.quantization=torchao_int8: not together with model\.offload=true"):
        make(quantization="torchao_int8", device="cuda", offload=True)
    with pytest.raises(UsageError, match=r"model\.quantization=torchao_int8: not together with model\.learned"):
        make(quantization="torchao_int8", learned=str(make().folder / make().LEARNABLE.denoiser))


@pytest.mark.parametrize(
    ("stored", "package"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}}, "torchao"),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8DynamicActivationInt8WeightConfig"}}}, ""),
        ({"quant_method": "torchao", "quant_type": "int8wo"}, ""), ({"quant_method": "gguf"}, ""), ({}, ""), ([], ""),
    ],
)  # fmt: skip
def test_quantised_folders_need_their_package(
    sd3_folder: Path, tmp_path: Path, stored: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(sd3_folder, tmp_path / "copy"))
    file = copy / "transformer" / "config.json"
    plain = json.loads(file.read_text())
    file.write_text(json.dumps(plain | {"quantization_config": stored}))
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda name: None)
    why = rf" without the package {package} \(pip install {package}\)" if package else ""
    with pytest.raises(UsageError, match=f"model.path=.*a quantised transformer{why} is not supported"):
        StableDiffusion3(path=str(copy), name="tiny")
    if package == "bitsandbytes":
        monkeypatch.setattr(quantization, "installed", lambda name: True)
        with pytest.raises(UsageError, match=r"model.path=.*its transformer is quantised: bitsandbytes computes on a GPU alone"):
            StableDiffusion3(path=str(copy), name="tiny")
    file.write_text(json.dumps(plain))
    file = copy / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": stored}))
    with pytest.raises(UsageError, match="a quantised vae.* is not supported"):
        StableDiffusion3(path=str(copy), name="tiny")


def test_torchao_s_weights_have_gradients(make: Callable[..., LatentModel], tmp_path: Path) -> None:
    """Of 8 bits: close to those of the whole weights, and smaller. A folder of them is read as it is."""
    pytest.importorskip("torchao")
    quantised, plain = make(quantization="torchao_int8"), make()
    x = torch.randn(2, 1, *plain.latent_shape, generator=torch.Generator().manual_seed(0))
    t = plain.schedule.at(400.0)

    def found(model: LatentModel) -> tuple[Tensor, Tensor]:
        x_t = x.clone().requires_grad_()
        eps = model.denoiser(tasks(PROMPTS[:2]))(x_t, t).eps
        return eps.detach(), torch.autograd.grad(eps.square().sum(), x_t)[0]

    small = found(quantised)
    for ours, theirs in zip(small, found(plain), strict=True):
        assert 0 < (ours - theirs).norm() < 0.1 * theirs.norm()
    kinds = {type(p.data).__name__ for p in quantised.network.parameters()}
    assert any("Int8" in kind for kind in kinds)
    copy = Path(shutil.copytree(plain.folder, tmp_path / "copy"))
    shutil.rmtree(copy / plain.LEARNABLE.denoiser)
    quantised.network.save_pretrained(copy / plain.LEARNABLE.denoiser)
    again = make(path=str(copy))
    assert all(torch.equal(a, b) for a, b in zip(found(again), small, strict=True))
    with pytest.raises(BadValue, match=r"quantization.*must be null: this folder's"):
        make(path=str(copy), quantization="torchao_int8")
    with pytest.raises(UsageError, match=r"is quantised: not together with model\.learned"):
        make(path=str(copy), learned=str(plain.folder / plain.LEARNABLE.denoiser))


def test_every_method_runs_on_quantised_weights(sd3_folder: Path) -> None:
    pytest.importorskip("torchao")
    for name in ("code", "codex", "doodl, edict", "adjoint_dpm"):
        model = StableDiffusion3(path=str(sd3_folder), name="tiny", guidance_scale=2.0, t5=False, quantization="torchao_int8")
        check_method(name, model, Flow(num_steps=4), Flow(num_steps=4, eta=1.0))

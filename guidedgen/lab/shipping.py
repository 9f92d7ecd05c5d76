"""From training parts to the shipped folder: trains what is asked for, in order, and writes fp16 safetensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from guidedgen.basics.images import to_pil
from guidedgen.basics.noise import generator as stream
from guidedgen.lab import exam, flow, networks, styles, training, turbo
from guidedgen.lab.card import card
from guidedgen.lab.fitting import Settings, fit, spent_on
from guidedgen.lab.networks import WEIGHTS

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def train(names: Sequence[str], settings: Settings) -> None:
    """Trains parts (of `training.PARTS`) in the order given and ships each as soon as it is done."""
    ship_tokenizer(networks.train_tokenizer())
    ship_styles()
    with _progress(settings) as progress:
        for name in names:
            network = fit(training.build(name, settings), settings, progress)
            if name == "vae":
                training.standardise(network, stream(settings.seed, "standardise"))
                ship(network, "generator/vae")
            elif name == "generator":
                ship(network["unet"], "generator/unet")
                ship(network["text"], "generator/text_encoder")
                ship_pipeline()
            elif name == "flow":
                ship_flow(network)
            elif name == "flow-coarse":
                pass  # a stage of the flow's training, in its checkpoint
            elif name == "turbo":
                ship_turbo(network)
            elif name in ("blip2", "vqa"):
                save(network[name], name)  # without the heads that only training has
            else:
                save(network, name)


def train_generator(settings: Settings, folder: Path) -> None:
    """Trains a generator of one's own, such as a weaker one, and writes it as a StableDiffusionPipeline's folder. What is shipped
    stays as it is.
    """
    with _progress(settings) as progress:
        network = fit(training.build("generator", settings), settings, progress)
    shutil.copytree(WEIGHTS / "generator", folder, dirs_exist_ok=True)
    ship(network["unet"], folder / "unet")
    ship(network["text"], folder / "text_encoder")


def _progress(settings: Settings) -> Progress:
    settings.folder.mkdir(parents=True, exist_ok=True)
    return Progress(
        TextColumn("{task.description:10}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )  # fmt: skip


def write_card(settings: Settings) -> None:
    """Examines what is shipped and writes its model card."""
    parts = [training.build(name, settings) for name in training.PARTS]
    spent = {part.name: spent_on(part, settings) for part in parts}
    text = card(exam.main(settings.device), parts, settings, spent)
    (WEIGHTS / "MODEL_CARD.md").write_text(text, encoding="utf-8")


def save(network: nn.Module, name: str) -> None:
    """Writes a plain network as `weights/NAME.safetensors` in fp16."""
    from safetensors.torch import save_file

    WEIGHTS.mkdir(parents=True, exist_ok=True)
    state = {key: value.half() if value.is_floating_point() else value for key, value in network.state_dict().items()}
    file = WEIGHTS / f"{name}.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, file)
    file.chmod(0o644)  # it is written for its owner alone


def ship(network: Any, name: str | Path) -> None:
    """Writes a diffusers or transformers network as the folder its own `from_pretrained` reads, in fp16: a part of what is shipped,
    or any folder.
    """
    folder = name if isinstance(name, Path) else WEIGHTS / name
    network.half().save_pretrained(folder, safe_serialization=True)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config.pop("_name_or_path", None)  # where it was read from, on the machine that made it
    if config.get("dtype") == "float16":
        # transformers loads in the dtype the config names, diffusers in fp32: name fp32, or the parts would not fit together.
        config["dtype"] = "float32"
    file.write_text(json.dumps(config, indent=2) + "\n")


def ship_tokenizer(tokenizer: Tokenizer, folder: str = "generator/tokenizer") -> None:
    """Writes the tokenizer as transformers' CLIPTokenizer reads it."""
    from transformers import CLIPTokenizer

    end = "<|endoftext|>"
    CLIPTokenizer(
        tokenizer_object=tokenizer, bos_token="<|startoftext|>", eos_token=end, unk_token=end, pad_token=end,
        model_max_length=networks.MAX_TOKENS,
    ).save_pretrained(WEIGHTS / folder)  # fmt: skip


def ship_styles() -> None:
    """Writes the style references as `weights/styles/NAME.png`."""
    (WEIGHTS / "styles").mkdir(parents=True, exist_ok=True)
    for name in styles.STYLES:
        to_pil(styles.draw(name)[None])[0].save(WEIGHTS / "styles" / f"{name}.png", optimize=True)


def ship_pipeline() -> None:
    """Writes the scheduler and the index that make `weights/generator` a StableDiffusionPipeline."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    root = WEIGHTS / "generator"
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(root / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(root / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(root / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(root / "unet"),
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_config(root)
    scheduler.save_pretrained(root / "scheduler")


def ship_turbo(unet: Any) -> None:
    """Writes `weights/turbo`: a UNet and its scheduler, which make a StableDiffusionPipeline with the other parts of
    `weights/generator`.
    """
    from diffusers import LCMScheduler, StableDiffusionPipeline

    root = WEIGHTS / "turbo"
    ship(unet, "turbo/unet")
    scheduler = LCMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False,
        prediction_type="v_prediction", original_inference_steps=turbo.TIMES, steps_offset=1,
    )  # fmt: skip
    scheduler.save_pretrained(root / "scheduler")
    shared = StableDiffusionPipeline.from_pretrained(WEIGHTS / "generator", unet=unet.float(), scheduler=scheduler)
    pipe = StableDiffusionPipeline(**shared.components, requires_safety_checker=False)  # without the path that it was read from
    pipe.save_config(root)


def ship_flow(transformer: Any) -> None:
    """Writes `weights/flow`, a StableDiffusion3Pipeline without T5 around the shipped autoencoder and tokenizer."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    root, vae = WEIGHTS / "flow", networks.load_vae()
    vae.register_to_config(shift_factor=0.0)  # SD3's pipeline adds one
    ship(transformer, "flow/transformer")
    ship(flow.first_text_encoder(networks.load_generator()[1]), "flow/text_encoder")
    ship(flow.second_text_encoder(networks.load_clip("guide")), "flow/text_encoder_2")
    ship(vae, "flow/vae")
    for name in ("tokenizer", "tokenizer_2"):
        ship_tokenizer(networks.load_tokenizer(), f"flow/{name}")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.save_pretrained(root / "scheduler")
    pipe = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel.from_pretrained(root / "transformer"),
        scheduler=scheduler,
        vae=AutoencoderKL.from_pretrained(root / "vae"),
        text_encoder=CLIPTextModelWithProjection.from_pretrained(root / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(root / "tokenizer"),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(root / "text_encoder_2"),
        tokenizer_2=CLIPTokenizer.from_pretrained(root / "tokenizer_2"),
        text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    pipe.save_config(root)

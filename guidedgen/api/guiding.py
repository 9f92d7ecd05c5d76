"""guidedgen from Python: what a notebook needs. It runs what the command line runs, with the same pictures, byte for byte."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from PIL import Image

from guidedgen.api.results import Result, of_job, read
from guidedgen.basics.errors import UsageError
from guidedgen.models import families, lent
from guidedgen.models.latent import LatentModel
from guidedgen.rewards import function
from guidedgen.runs import composition, config, experiment, preparation, report
from guidedgen.runs.store import RunFailed

# The model= option whose settings a pipeline of each family has.
_LIKE = {
    "StableDiffusion": "sd15", "StableDiffusionXl": "sdxl", "StableDiffusion3": "sd35_medium", "Flux": "flux_dev",
    "PixArt": "pixart_sigma", "Sana": "sana", "Dit": "dit_xl_256", "Pixel": "ddpm_cifar10",
}  # fmt: skip
_PARTS = ("method", "model", "scheduler", "dataset")  # whose options need no prefix, in this order


def guide(
    model: Any,
    prompts: str | Sequence[str],
    *,
    method: str = "code",
    reward: str | Mapping[str, Any] | Callable[..., Any] | None = "aesthetic",
    seed: int = 0,
    samples_per_prompt: int = 1,
    images: Sequence[str | Path | Image.Image] | None = None,
    base: bool = True,
    metrics: str = "none",
    like: str | None = None,
    outputs: str | Path | None = None,
    quiet: bool = True,
    overrides: Sequence[str] = (),
    **options: Any,
) -> Result:
    """Pictures of the prompts, guided towards a reward.

    Args:
        model: a diffusers pipeline as you have loaded it (of a supported family; it is used as it is, and not changed), a name of
            `model=` such as "lab" or "sd15", or a folder or hub repository.
        prompts: one prompt or several.
        method: a name of `method=`.
        reward: a name of `reward=`, a config with `_target_`, None for none, or a function of images (torch, b 3 H W in [0, 1])
            and their b prompts that gives b scores, higher is better. Gradient methods need scores with a gradient.
        seed: of the first picture of each prompt; the others have those that follow.
        images: pictures to start from, files or PIL images: every prompt is drawn from every one. `noise_ratio` says how much noise
            they get, 1 being pure noise; 0.6 unless given.
        base: whether the unguided pictures of the same seeds are drawn too (`result.base`).
        metrics: a name of `metrics=`, for more scores (`result.metrics`).
        like: the `model=` option whose settings a pipeline takes; that of its family unless given. Networks of rewards follow it:
            "lab" is for the bundled ones.
        outputs: a folder to keep the run in, as the command line does: the same call again then goes on, or reads what is there.
        quiet: whether nothing is printed.
        overrides: more, as on the command line: ["scheduler=ddim", "zoo=lab"].
        options: options of the method, the model or the scheduler (num_particles=4, guidance_scale=5, num_steps=25), and plain keys
            of a run (batch_size=4, dtype="float16").

    Raises:
        UsageError: anything wrong with these, in one line, before weights are loaded.
        RuntimeError: no picture came out.
    """
    with contextlib.ExitStack() as stack:
        kept = Path(outputs) if outputs is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        chosen = [f"method={method}", "tracker=none", f"metrics={metrics}"]
        given: dict[str, Any] = {"outputs": str(kept), "seed": seed, "samples_per_prompt": samples_per_prompt}
        listed = [prompts] if isinstance(prompts, str) else list(prompts)
        if images is None:
            chosen += ["dataset=prompts"]
            given |= {"dataset.prompts": listed}
        else:
            chosen += ["dataset=image_to_image", "dataset@dataset.prompts=prompts"]
            given |= {"dataset.prompts.prompts": listed, "dataset.images": [_file(image, kept / ".images") for image in images]}
        given |= {} if base else {"reference": "none"}
        choice, of_model = stack.enter_context(_chosen(model, like, kept / ".pipelines", hashed=outputs is not None))
        chosen, given = [*chosen, choice], given | of_model
        node: Mapping[str, Any] | None = None
        if callable(reward):
            node = {"_target_": "guidedgen.rewards.function.Function", "digest": _known(reward)}
        elif isinstance(reward, Mapping):
            node = reward
        chosen += [f"reward={reward}"] if isinstance(reward, str) else ["reward=none"]
        cfg = _with_options(compose([*chosen, *overrides]), given, options)
        if node is not None:
            with open_dict(cfg):
                cfg.reward = config.escaped(dict(node))
        names = {"function": getattr(reward, "__name__", "function")} if callable(reward) else {}
        result = _run(cfg, quiet)
        return dataclasses.replace(result.renamed(names), folder=result.folder if outputs is not None else None)


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """The config of a command line: compose(["method=doodl", "reward=aesthetic"]). Raises UsageError."""
    composition.check_options(composition.parse(overrides), config.groups([config.CONF]))
    return composition.composed(list(overrides))


def run(what: Sequence[str] | DictConfig, *, quiet: bool = False) -> Result:
    """Runs what `python run.py OVERRIDES` would run, or a composed config: the same folder, resumed if it is there."""
    return _run(what if isinstance(what, DictConfig) else compose(what), quiet)


def read_run(folder: str | Path) -> Result:
    """What a run's folder holds: pictures, scores, traces, cost. Raises UsageError where it is no run, or is damaged."""
    return read(Path(folder))


def load_model(model: Any, like: str | None = None, **options: Any) -> LatentModel:
    """A model for methods that are called by hand, as in `Problem.from_model`: of a pipeline, a name of `model=` or a folder.

    A pipeline's networks are frozen for as long as the model is there.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        choice, given = stack.enter_context(_chosen(model, like, folder, hashed=False))
        loaded = preparation.prepare(_with_options(compose([choice, "method=base", "reward=none"]), given, options)).model
        weakref.finalize(loaded, stack.pop_all().close)
    return loaded


@contextlib.contextmanager
def _chosen(model: Any, like: str | None, folder: Path, *, hashed: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """The option of `model=` and the values that name a model; a pipeline is lent through a folder inside `folder`."""
    if not isinstance(model, str | Path):
        choice = like or _like(model)
        with lent.lent(model, folder, hashed=hashed) as path:
            given = {"model.path": path, "model.name": like or "pipeline", "device": str(model.device), "dtype": _dtype(model)}
            yield f"model={choice}", given
        return
    if like:
        raise UsageError(f"like={like}: is for pipelines; model={model} has settings of its own")
    named = str(model) in config.groups([config.CONF])["model"]
    yield f"model={model}" if named else "model=diffusers", {} if named else {"model.path": str(model)}


def _run(cfg: DictConfig, quiet: bool) -> Result:
    deterministic, benchmark = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    job = preparation.prepare(cfg)
    try:
        with report.silent() if quiet else contextlib.nullcontext():
            metrics = experiment.run(job)
    except RunFailed as failed:  # it would end the process
        raise RuntimeError(failed.code) from failed
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, benchmark
    return of_job(job, metrics)


def _with_options(cfg: DictConfig, given: Mapping[str, Any], options: Mapping[str, Any]) -> DictConfig:
    """A config with values at dotted keys, and with options whose key may lack the part that it is of."""
    for key, value in {**given, **{_key(cfg, name): value for name, value in options.items()}}.items():
        OmegaConf.update(cfg, key, config.escaped(list(value) if isinstance(value, tuple) else value), merge=False)
    return cfg


def _key(cfg: DictConfig, name: str) -> str:
    for part in _PARTS:
        if isinstance(cfg.get(part), DictConfig) and name in cfg[part]:
            return f"{part}.{name}"
    known = {str(key) for key in cfg if not isinstance(cfg._get_node(key), DictConfig)}
    if name in known:
        return name
    names = [str(key) for part in _PARTS if isinstance(cfg.get(part), DictConfig) for key in cfg[part]]
    method = config.module_of(cfg.method)
    raise UsageError(f"{name}: no such option of method={method}, its model or scheduler{config.near(name, [*names, *known])}")


def _file(image: str | Path | Image.Image, folder: Path) -> str:
    """The file of a picture; of one in memory, a file named by what it shows."""
    if not isinstance(image, Image.Image):
        return str(image)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{hashlib.sha256(f'{image.mode} {image.size}'.encode() + image.tobytes()).hexdigest()[:12]}.png"
    image.save(file)
    return str(file)


def _like(pipeline: Any) -> str:
    name = type(pipeline).__name__
    for family in families.FAMILIES:
        if name in family.FOLDER.PIPELINES:
            if family.__name__ == "Flux" and not pipeline.transformer.config.guidance_embeds:
                return "flux_schnell"
            return "lcm" if name.startswith("LatentConsistencyModel") else _LIKE[family.__name__]
    supported = ", ".join(family.FOLDER.PIPELINES[0] for family in families.FAMILIES)
    raise UsageError(f"model: a {name} is not supported; supported: {supported}, a folder, or a name of model=")


def _dtype(pipeline: Any) -> str:
    """Of the denoising network: the autoencoder may have another."""
    network = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    return str(network.dtype).removeprefix("torch.")  # type: ignore[union-attr]


def _known(reward: Callable[..., Any]) -> str:
    """What stands for a function in a config: a hash of its source, where there is any."""
    try:
        source = inspect.getsource(reward)
    except (OSError, TypeError):
        source = repr(reward)
    digest = hashlib.sha256(f"{getattr(reward, '__qualname__', '')} {source}".encode()).hexdigest()[:16]
    function.give(digest, reward)
    return digest

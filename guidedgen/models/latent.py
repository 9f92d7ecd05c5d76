"""Text-to-image latent diffusion models: what all families share.

A family (StableDiffusion, StableDiffusion3) says what its networks are, how they read prompts and what they predict; here their
rows are batched, guided and counted, and pictures are encoded and decoded.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar, cast

import torch
from torch import Tensor

from guidedgen.basics import images
from guidedgen.basics.cost import Ledger
from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.precision import run_in
from guidedgen.basics.tasks import Task
from guidedgen.models import lent, quantization, weaker
from guidedgen.models.folder import Folder
from guidedgen.models.learnable import Learnable
from guidedgen.models.learned import Learned
from guidedgen.models.noise_folder import NoiseFolder
from guidedgen.models.prompts import Prompts
from guidedgen.models.words import Words, replaced, words_in
from guidedgen.process import Denoiser, Prediction
from guidedgen.process.classifier_free import Guidance, Guided, Output, PlainlyGuided
from guidedgen.process.formulas import classifier_free
from guidedgen.process.grid import FlowSchedule, Grid, Point, Schedule
from guidedgen.zoo.needed import Needed
from guidedgen.zoo.pretrained import load_pretrained

if TYPE_CHECKING:
    from diffusers import AutoencoderDC, AutoencoderKL

    from guidedgen.models.offload import Alternating

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
_Network = TypeVar("_Network", bound=torch.nn.Module)


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """What rows are conditioned on, one row a prompt: its tokens b l d, and for some families a pooled vector b d, and a mask b l
    that is 1 where there is a token and 0 where there is none.
    """

    tokens: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """The same change of all of it."""
        return Conditioning(*(None if part is None else change(part) for part in (self.tokens, self.pooled, self.mask)))  # type: ignore[arg-type]

    def rows(self, index: Tensor | Sequence[int]) -> Conditioning:
        """Some of the rows, which may repeat."""
        chosen = index if isinstance(index, Tensor) else list(index)
        return self.map(lambda part: part[chosen])

    def repeated(self, count: int) -> Conditioning:
        """One row as so many."""
        return self.map(lambda part: part.expand(count, *part.shape[1:]))

    def followed_by(self, other: Conditioning) -> Conditioning:
        """These rows, then the other's."""
        pairs = ((self.tokens, other.tokens), (self.pooled, other.pooled), (self.mask, other.mask))
        return Conditioning(*(None if a is None or b is None else torch.cat([a, b]) for a, b in pairs))  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentModel(abc.ABC):
    """A text-to-image latent diffusion model in a folder of diffusers. Networks are frozen and load at first use, after every
    option has been checked.

    `path` is a folder or a repository of the hub. With `guidance_scale` 1 the negative prompt is never evaluated. A prompt longer
    than the text encoders read is an error unless `truncate_prompts`, which cuts it as diffusers does. `size` is the pictures'
    height and width in pixels, or one number for both; None is what the model was trained on.

    For less memory: with `offload` the denoising network and the autoencoder take turns on the device, and the other waits on the
    host; with `vae_slicing` the autoencoder works on one picture at a time, with `vae_tiling` on overlapping tiles of pictures that
    are larger than its own, as diffusers' enable_slicing and enable_tiling have it; `quantization` is how the denoising network's
    weights are quantised when they are loaded (see guidedgen.models.quantization).

    `weaker` is a folder or repository with a weaker model, whose prediction takes the place of that for the negative prompt (see
    guidedgen.models.weaker). `guidance` is a variant of classifier-free guidance (see guidedgen.process.classifier_free), None the
    plain one.
    """

    path: str
    name: str
    device: str = "cpu"
    dtype: str = "float32"
    guidance_scale: float = 7.5
    negative_prompt: str = ""
    truncate_prompts: bool = False
    batch_size: int = 8  # latent rows per network call; a guidance pair is one row here
    learned: str | Sequence[Any] | Mapping[str, Any] | None = None
    size: int | Sequence[int] | None = None
    offload: bool = False
    vae_tiling: bool = False
    vae_slicing: bool = False
    quantization: str | None = None
    weaker: str | None = None
    guidance: Guidance | None = None
    ledger: Ledger = dataclasses.field(default_factory=Ledger)
    weak: LatentModel | None = dataclasses.field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path:
            raise BadValue("path", self.path, "must be a folder, a hub name (org/name) or lab")
        if self.dtype not in DTYPES:
            raise BadValue("dtype", self.dtype, f"choose from {', '.join(DTYPES)}")
        if self.batch_size < 1:
            raise BadValue("batch_size", self.batch_size, "must be at least 1")
        if not self.guidance_scale >= 0:
            raise BadValue("guidance_scale", self.guidance_scale, "must be at least 0 (1 is no guidance)")
        self._check_memory()
        if self.learned is not None:
            self.check_plain("model.learned")
            tokenizers = {reader.encoder: reader.tokenizer for reader in self.LEARNABLE.readers}
            self.additions.check(
                self.opened.configs.__getitem__, lambda encoder: self.opened.load_tokenizer(tokenizers[encoder], encoder)
            )
        if self.weaker is not None:
            object.__setattr__(self, "weak", self._open_weaker())
        if self.guidance is not None:
            self.guidance.check(self.guidance_scale, self.output_kind)

    def _check_memory(self) -> None:
        """Raises BadValue and UsageError where an option for less memory cannot be had here."""
        for name in ("offload", "vae_tiling", "vae_slicing"):
            if not isinstance(getattr(self, name), bool):
                raise BadValue(name, getattr(self, name), "must be true or false")
        if self.offload and torch.device(self.device).type == "cpu":
            raise BadValue("offload", self.offload, "must be false on device=cpu: there is no other memory to wait in")
        quantization.check(self.quantization, self.device, self.dtype)
        for part, package in self.opened.quantised.items():
            quantization.check_package(package, self.device, f"{self.opened.source}: its {part} is quantised")
        if self.quantization is not None and self.LEARNABLE.denoiser in self.opened.quantised:
            raise BadValue("quantization", self.quantization, f"must be null: this folder's {self.LEARNABLE.denoiser} is quantised")
        if self.offload:
            self.check_plain("model.offload=true")

    def _open_weaker(self) -> LatentModel:
        """The model that `weaker` names, with the other options of this one. Raises BadValue and UsageError where it cannot be had,
        or is not of the same family with the same latents and noise levels.
        """
        assert self.weaker is not None
        for name, odd, rule in (
            ("guidance_scale", self.guidance_scale == 1, "must not be 1 (no guidance) with model.weaker"),
            ("negative_prompt", self.negative_prompt, 'must be "" with model.weaker, which takes its place'),
            ("offload", self.offload, "must be false with model.weaker"),
            ("weaker", self.additions.words, "must be null with learned words in model.learned, which it does not know"),
            ("weaker", not isinstance(self.weaker, str), "must be a folder, a hub name (org/name) or null"),
        ):
            if odd:
                raise BadValue(name, getattr(self, name), rule)
        source = f"model.weaker={self.weaker}"
        try:
            weak = dataclasses.replace(self, path=self.weaker, name=f"{self.name} (weaker)", weaker=None, learned=None)
            theirs, own = weak.opened, self.opened
        except BadValue as error:
            raise UsageError(f"{source}: {error.name}={error.value}: {error.rule}") from error
        except UsageError as error:
            raise UsageError(f"{source}: {str(error).removeprefix(f'model.path={self.weaker}: ')}") from error
        for what, kept in (
            ("latents", lambda folder: folder.latent_shape),
            ("scaling of latents", lambda folder: folder.configs["vae"].get("scaling_factor")),
            ("noise levels", lambda folder: [folder.schedule.at(t) for t in range(len(folder.schedule))]),
        ):
            if kept(theirs) != kept(own):
                rule = f"has other {what} than model.path={self.path}; a weaker version of that model is needed"
                raise UsageError(f"{source}: {rule}")
        return weak

    def check_plain(self, what: str) -> None:
        """Raises UsageError where weights are quantised, which `what` cannot be had with."""
        if self.quantization is not None or self.opened.quantised:
            how = f"model.quantization={self.quantization}" if self.quantization else f"{self.opened.source}: is quantised"
            raise UsageError(f"{how}: not together with {what}, which needs weights that are not")

    # What a family says

    FOLDER: ClassVar[type[Folder]]
    LEARNABLE: ClassVar[Learnable]
    GUIDANCE: ClassVar[float]  # the guidance scale that its pipeline takes
    READERS: ClassVar[Sequence[str]]  # its attributes that prompts are read with: tokenizers, text encoders, learned words
    CONDITIONED: ClassVar[bool] = True  # on prompts
    UPCASTS: ClassVar[bool] = False  # the autoencoder to float32, where its config says that its numbers are too large for float16

    @classmethod
    def guidance_of(cls, path: str) -> float:
        """The guidance scale that the pipeline of this folder takes; the folder is opened where it says so."""
        del path
        return cls.GUIDANCE

    @classmethod
    def reads(cls, *, path: str, weaker: str | None = None, **options: Any) -> tuple[Needed, ...]:
        """What is read of the hub or of a folder: nothing of what is bundled."""
        folder = cls.folder_of(**options)
        return (*folder.reads(path), *(() if weaker is None else folder.reads(weaker, "model.weaker")))

    @classmethod
    def folder_of(cls, **options: Any) -> type[Folder]:
        """The kind of folder that a model with such options is in."""
        del options
        return cls.FOLDER

    @classmethod
    def options_of(cls, index: Mapping[str, Any]) -> dict[str, Any]:
        """The options that follow from what model_index.json says."""
        del index
        return {}

    @property
    @abc.abstractmethod
    def opened(self) -> Folder:
        """Its folder, checked."""

    @property
    @abc.abstractmethod
    def files(self) -> tuple[Path, ...]:
        """What it is made of, for a run's identity: the folders of the parts that are read, and what was learned besides."""

    @abc.abstractmethod
    def count_tokens(self, prompt: str) -> int:
        """A prompt's tokens, start and end left out."""

    @abc.abstractmethod
    def conditional(self, tasks: Sequence[Task]) -> Conditioning:
        """Reads the tasks' prompts, a row each, of one length whatever the prompts."""

    @abc.abstractmethod
    def unconditional(self) -> Conditioning:
        """Reads the negative prompt, one row."""

    @abc.abstractmethod
    def predict(self, x_t: Tensor, t: Point, conditioning: Conditioning) -> Tensor:
        """What the network answers, in its own form and dtype: b c h w, one row of conditioning each."""

    @abc.abstractmethod
    def prediction(self, x_t: Tensor, output: Tensor, t: Point) -> Prediction:
        """What such an answer, guided or not, says of x_0 and eps; any shape."""

    # What all have

    def condition(self, tasks: Sequence[Task]) -> tuple[Conditioning, Conditioning]:
        """Reads the tasks' prompts, and the negative prompt."""
        return self.conditional(tasks), self.unconditional()

    @property
    def clips(self) -> bool:
        """Whether what it predicts of x_0 is clipped, so that x_t is no longer alpha x_0 + sigma eps of its predictions."""
        return False

    @property
    def folder(self) -> Path:
        """Where the files are on this machine."""
        return self.opened.path

    @property
    def schedule(self) -> Schedule:
        """The noise levels the model was trained on."""
        return self.opened.schedule

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """c h w."""
        return self.opened.latent_shape

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the pictures in pixels."""
        return self.opened.image_size

    @property
    def max_tokens(self) -> int:
        """Tokens per prompt, start and end included."""
        return self.opened.max_tokens

    @functools.cached_property
    def additions(self) -> Learned:
        """What `learned` names."""
        return Learned(self.learned, "model.learned", self.LEARNABLE)

    def vocabularies(self, tokenizers: Sequence[Any], encoders: Sequence[Any]) -> tuple[Words, ...]:
        """What the text encoders that learn words have learned besides their vocabularies."""
        found = tuple(
            Words(tokenizer, encoder, self.negative_prompt) for tokenizer, encoder in zip(tokenizers, encoders, strict=True)
        )
        self.additions.into_words({reader.encoder: words for reader, words in zip(self.LEARNABLE.readers, found, strict=True)})
        return found

    @functools.cached_property
    def vae(self) -> AutoencoderKL | AutoencoderDC:
        """The autoencoder."""
        from diffusers import AutoencoderKL

        return self.load_network(AutoencoderKL, "vae", dtype=self.vae_dtype)

    @property
    def vae_dtype(self) -> torch.dtype:
        """What the autoencoder computes in."""
        upcast = self.UPCASTS and self.dtype == "float16" and self.opened.configs["vae"]["force_upcast"]
        return torch.float32 if upcast else DTYPES[self.dtype]

    def load_network(
        self, kind: type[_Network], part: str, spare: Sequence[str] = (), dtype: torch.dtype | None = None
    ) -> _Network:
        """A network of the folder, in the model's dtype unless another is given, with what was learned of it."""
        if (given := lent.networks(self.path)) is not None:
            network = cast("_Network", given[part])
            return network.to(memory_format=torch.channels_last) if self._innermost(part) else network
        denoises = part == self.LEARNABLE.denoiser
        waits = self.offload and (denoises or part == "vae")
        network = load_pretrained(
            kind, self.opened.part_folder(part), source=f"model.path={self.path}", what=f"its {part}", spare=spare,
            safetensors=str(self.opened.weights(part)).endswith(".safetensors"),
            device=torch.device("cpu" if waits else self.device), dtype=dtype or DTYPES[self.dtype],
            quantization=quantization.config_of(self.quantization, DTYPES[self.dtype]) if denoises else None,
            quantised=part in self.opened.quantised, channels_last=self._innermost(part),
        )  # fmt: skip
        self.additions.into(network, part)
        if part == "vae" and self.vae_tiling:
            network.enable_tiling()
        if part == "vae" and self.vae_slicing:
            network.enable_slicing()
        if waits:
            self.alternating.add(network)
        return network

    def _innermost(self, part: str) -> bool:
        """Whether a part's convolutions have channels innermost, which on a CPU saves up to a third of the time in float32. Results
        differ by rounding.
        """
        return part in (self.LEARNABLE.denoiser, "vae") and torch.device(self.device).type == "cpu" and self.dtype == "float32"

    # What is loaded, and when

    @property
    def network(self) -> Any:
        """The denoising network."""
        return getattr(self, self.LEARNABLE.denoiser)

    @functools.cached_property
    def network_dtype(self) -> torch.dtype:
        """What the denoising network computes in, asked once: diffusers goes through all of its parts for it."""
        dtype: torch.dtype = self.network.dtype
        return dtype

    @property
    def networks(self) -> tuple[Any, ...]:
        """Those that pictures are made with once prompts are read."""
        return self.network, self.vae

    @functools.cached_property
    def alternating(self) -> Alternating:
        """The networks that take turns on the device."""
        from guidedgen.models.offload import Alternating

        return Alternating(torch.device(self.device))

    @functools.cached_property
    def prompts(self) -> Prompts[Conditioning]:
        """What was read in prompts, and in the negative prompt."""
        return Prompts()

    def load(self, tasks: Sequence[Task] = ()) -> None:
        """Loads what is not loaded yet.

        Given the tasks that are to be sampled, in their order, their prompts are read first, and the text encoders are dropped
        before the denoising network is loaded: both need not fit on the device at once. Else the text encoders stay.
        """
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        with self.ledger.timed("load"):
            self.prompts.announce(() if self.prompts.live else (task.prompt for task in tasks))
            if self.prompts.announced:
                self._read(self.prompts.missing(self.prompts.first_missing()))
                self._drop_readers()
            else:
                for name in self.READERS:
                    getattr(self, name)
            for network in self.networks:
                assert not network.training
        if self.weak is not None:
            self.weak.load(tasks)

    def keep_readers(self) -> None:
        """From now on prompts are read anew for every batch, as what they are read with is changed."""
        self.prompts.live = True
        self.prompts.forget()

    @torch.inference_mode(False)
    def _read(self, prompts: Sequence[str]) -> None:
        """Reads these prompts, one by one, and keeps what is read on the host. Where it was announced what will be asked for, the
        denoising network makes room for the text encoders, which are dropped afterwards.
        """
        if not prompts:
            return
        with self._aside() if self.prompts.announced else contextlib.nullcontext():
            for prompt in prompts:
                self.prompts.keep(prompt, self.conditional([Task(id="", prompt=prompt)]).map(Tensor.cpu))
            if self.prompts.negative is None:
                self.prompts.negative = self.unconditional().map(Tensor.cpu)
            if self.prompts.announced:
                self._drop_readers()

    def _drop_readers(self) -> None:
        for name in self.READERS:
            vars(self).pop(name, None)
        if torch.device(self.device).type == "cuda":
            torch.cuda.empty_cache()

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """The denoising network, where it is loaded, waits on the host."""
        network = vars(self).get(self.LEARNABLE.denoiser)
        if self.offload:
            self.alternating.leave()
        # Quantised weights are small, and not made to be moved.
        stays = self.offload or self.quantization or self.LEARNABLE.denoiser in self.opened.quantised
        if network is None or stays or torch.device(self.device).type == "cpu":
            yield
            return
        network.to("cpu")
        try:
            yield
        finally:
            network.to(self.device)

    def check(self, tasks: Sequence[Task], reserved: int = 0) -> None:
        """Raises UsageError where a prompt is longer than the text encoders read, less the tokens `reserved` for words to be
        learned; needs the tokenizers only.
        """
        if self.truncate_prompts:
            return
        room = self.max_tokens - self.FOLDER.ENDS - reserved
        for prompt in dict.fromkeys([self.negative_prompt, *(task.prompt for task in tasks)]):
            plain, more = self.without_learned(prompt)
            tokens = len(plain.split()) + more  # a token or more each: no need to load a tokenizer to refuse a very long prompt
            if tokens <= room:
                tokens = self.count_tokens(plain) + more
            if tokens > room:
                self._refuse(prompt, tokens, room)

    def without_learned(self, prompt: str) -> tuple[str, int]:
        """A prompt without its learned words, and how many tokens these are, those included that it is read with."""
        known = self.additions.words
        if not known:
            return prompt, 0
        there = words_in(known, prompt)
        added = (
            known.keys() - {*there, *words_in(known, self.negative_prompt)} if prompt != self.negative_prompt or not prompt else ()
        )
        return replaced(known, prompt, lambda _: " "), sum(known[name] for name in (*there, *added))

    def _refuse(self, prompt: str, tokens: int, room: int) -> NoReturn:
        raise UsageError(
            f"prompt of {tokens} tokens or more ({prompt[:40]!r}...): model={self.name} reads {room}; "
            "shorten it or set model.truncate_prompts=true"
        )

    def denoiser(self, tasks: Sequence[Task]) -> PromptedDenoiser:
        """The denoiser of these tasks. A prompt is read by itself, once: what is read in it depends on no other prompt."""
        if self.prompts.live:
            cond, uncond = self.condition(tasks)
            return PromptedDenoiser(model=self, cond=cond, uncond=uncond)
        prompts = [task.prompt for task in tasks]
        self._read(self.prompts.missing(prompts))
        assert self.prompts.negative is not None
        read = functools.reduce(Conditioning.followed_by, [self.prompts[prompt] for prompt in prompts])
        cond, uncond = (each.map(lambda part: part.to(self.device, copy=True)) for each in (read, self.prompts.negative))
        return PromptedDenoiser(model=self, cond=cond, uncond=uncond)

    def guided_denoiser(self, tasks: Sequence[Task], grid: Grid, num_steps: int) -> Denoiser:
        """The same, guided by the weaker model where there is one, and as `guidance` says along a grid, which is the end of a chain
        of `num_steps`.
        """
        own: Denoiser = self.denoiser(tasks)
        if self.weak is not None:
            own = weaker.Autoguided(own, self.weak.denoiser(tasks))
        return own if self.guidance is None else Guided(own, self.guidance, self.output_kind, grid, num_steps)

    @property
    def output_kind(self) -> Output:
        """What its network predicts."""
        if isinstance(self.schedule, FlowSchedule):
            return "velocity"
        return "v_prediction" if isinstance(self.opened, NoiseFolder) and self.opened.prediction == "v_prediction" else "epsilon"

    def decode(self, x_0: Tensor) -> Tensor:
        """Latents (b c h w) to images (b 3 H W) in [0, 1]; differentiable."""
        with self.ledger.timed("decode"):
            self.ledger.decodes += len(x_0)
            own = self.for_vae(x_0)
            return images.from_model(run_in(self.vae.dtype, lambda z: self.vae.decode(z).sample, own).float().contiguous())

    def encode(self, pictures: Tensor) -> Tensor:
        """Images (b 3 H W) in [0, 1] to latents (b c h w), the mean of the posterior; differentiable."""
        with self.ledger.timed("encode"):
            return self.from_vae(self.encoded(images.to_model(pictures).to(self.vae.dtype)).float())

    def encoded(self, pictures: Tensor) -> Tensor:
        """Images (b 3 H W) in [-1, 1] to what the autoencoder makes of them, in its own scale: the mean of the posterior."""
        mean: Tensor = self.vae.encode(pictures).latent_dist.mean
        return mean.contiguous()

    def for_vae(self, x_0: Tensor) -> Tensor:
        """Latents in the autoencoder's own scale."""
        return x_0 / self.vae.config.scaling_factor + (self.vae.config.get("shift_factor") or 0.0)

    def from_vae(self, latents: Tensor) -> Tensor:
        """The inverse of `for_vae`."""
        return (latents - (self.vae.config.get("shift_factor") or 0.0)) * self.vae.config.scaling_factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptedDenoiser(PlainlyGuided):
    """What a model predicts for b prompts; any number of particles each."""

    model: LatentModel
    cond: Conditioning  # b rows
    uncond: Conditioning  # one

    @property
    def guidance_scale(self) -> float:
        return self.model.guidance_scale

    def __call__(self, x_t: Tensor, t: Point, guidance_scale: float | None = None) -> Prediction:
        """Of b n c h w, in calls of at most `batch_size` latents."""
        w = self.guidance_scale if guidance_scale is None else guidance_scale
        if w == 1:
            output = self._rows(lambda rows, cond: self._network(rows, cond, t), x_t)
        elif w == 0:
            output = self._rows(lambda rows, cond: self._network(rows, self.uncond.repeated(len(cond)), t), x_t)
        else:
            output = self._rows(lambda rows, cond: classifier_free(*self._pair(rows, cond, t), w), x_t)
        return self.model.prediction(x_t, output, t)

    def pair(self, x_t: Tensor, t: Point) -> tuple[Prediction, Prediction]:
        """Of b n c h w, in calls of at most `batch_size` latents."""
        both = self._rows(lambda rows, cond: torch.stack(self._pair(rows, cond, t), 1), x_t)  # b n 2 c h w
        return self.model.prediction(x_t, both[:, :, 0], t), self.model.prediction(x_t, both[:, :, 1], t)

    @property
    def conditioning(self) -> Tensor:
        """The prompts' embeddings: b l d."""
        return self.cond.tokens

    def conditioned_on(self, conditioning: Tensor) -> PromptedDenoiser:
        return dataclasses.replace(self, cond=dataclasses.replace(self.cond, tokens=conditioning))

    def subset(self, rows: Sequence[int]) -> PromptedDenoiser:
        return dataclasses.replace(self, cond=self.cond.rows(rows))

    def _rows(self, predict: Callable[[Tensor, Conditioning], Tensor], x_t: Tensor) -> Tensor:
        """`predict` of every latent and its prompt's conditioning, put together again."""
        b, n = x_t.shape[:2]
        rows, owner = x_t.flatten(0, 1), torch.arange(b * n, device=x_t.device) // n
        size = self.model.batch_size
        parts = [predict(rows[i : i + size], self.cond.rows(owner[i : i + size])) for i in range(0, b * n, size)]
        return torch.cat(parts).unflatten(0, (b, n))

    def _pair(self, x_t: Tensor, cond: Conditioning, t: Point) -> tuple[Tensor, Tensor]:
        both = self._network(torch.cat([x_t, x_t]), self.uncond.repeated(len(cond)).followed_by(cond), t)
        uncond, conditional = both.chunk(2)
        return uncond, conditional

    def _network(self, x_t: Tensor, conditioning: Conditioning, t: Point) -> Tensor:
        ledger = self.model.ledger
        ledger.nfe += len(x_t)
        with ledger.timed("denoise"):
            output = self.model.predict(x_t, t, conditioning).contiguous()
        ledger.count_backward(output, len(x_t))
        return output

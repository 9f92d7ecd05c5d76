"""Networks that answer yes/no questions about images: zoo.Vqa.

BLIP (Li et al. 2022, arXiv:2201.12086) fine-tuned on VQAv2, which T2I-CompBench judges by; any image-text-to-text model of
transformers; the lab's small BLIP. A score is the log-odds of "yes" against "no" as the answer's first token.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from guidedgen.basics import images as pictures
from guidedgen.basics import vision_language
from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.precision import DType, dtype_of, full_dtype_of, rounded, run_in, settled, wide
from guidedgen.zoo.files import locate_lab, read_config, read_state
from guidedgen.zoo.needed import BERT_WORDS, PROCESSOR, TOKENIZER, Needed, network
from guidedgen.zoo.pretrained import load_pretrained, load_processor, readable

if TYPE_CHECKING:
    from transformers import BlipForQuestionAnswering

LENGTH = 35  # tokens of a question at most: salesforce/BLIP, models/blip_vqa.py
_WORDS = {"yes": ("yes", "Yes", "YES", " yes", " Yes"), "no": ("no", "No", "NO", " no", " No")}


class BlipVqa:
    """BLIP's question answering, as T2I-CompBench runs it (Karine-Huang/T2I-CompBench, BLIPvqa_eval): zoo.Vqa.

    `path` is a folder or a hub name in transformers' format, whose config and tokenizer are used. Its weights are too, unless
    `checkpoint` names the authors' own file (model_base_vqa_capfilt_large.pth), of which the published ones were made: they are
    for 384 px, and their positions are interpolated to `size`, where the benchmark has 480. Images are squashed to a square,
    bicubic, on tensors, so that gradients reach the pixels. Questions are cut to 35 tokens, and begin with [ENC] as the authors'
    do and transformers' do not (huggingface/transformers#22732). `name`, `weights`, `dtype` and
    `key` as for `zoo.clip.HubClip`. Raises UsageError where something is missing, or the folder holds another kind of model.
    """

    differentiable = True

    def __init__(
        self,
        *,
        name: str,
        path: str | Path,
        checkpoint: str | Path | None = None,
        size: int = 480,
        device: torch.device | str = "cpu",
        dtype: DType = "float32",
        weights: str | None = None,
        key: str = "vqa.path",
    ) -> None:
        self.name = name
        self.device, self.dtype = torch.device(device), settled(dtype, device)
        self.checkpoint = None if checkpoint is None else Path(checkpoint).expanduser()
        if self.checkpoint is not None and not self.checkpoint.is_file():
            raise UsageError(f"{key}: checkpoint={checkpoint}: no such file")
        [needed] = self.reads(path=path, checkpoint=checkpoint, weights=weights, key=key)
        self.folder = needed.locate()
        config = read_config(self.folder, source=f"{key}={path}", kind="blip")
        patch = (config.get("vision_config") or {}).get("patch_size", 16)
        if size < patch or size % patch:
            raise BadValue("size", size, f"must be a multiple of the patches' {patch} px")
        self.size = size
        self._safetensors = checkpoint is None and needed.found(self.folder).endswith(".safetensors")
        self._key = key

    @staticmethod
    def reads(
        *,
        path: str | Path,
        checkpoint: str | Path | None = None,
        weights: str | None = None,
        key: str = "vqa.path",
        **_: object,
    ) -> tuple[Needed, ...]:
        """What is read: the tokenizer, and the network or, of one whose weights are in `checkpoint`, its config."""
        if checkpoint is None:
            return (network(path, key=key, files=TOKENIZER, weights=weights, one_of=BERT_WORDS),)
        files = ("config.json", *TOKENIZER)
        return (Needed(name=str(path), key=key, files=files, required=files[:1], one_of=BERT_WORDS),)

    @property
    def described(self) -> str:
        """What its answers depend on."""
        whose = "transformers' weights" if self.checkpoint is None else f"the authors' {self.checkpoint.name}"
        return f"{self.name} at {self.size} px ({whose})"

    @property
    def network(self) -> BlipForQuestionAnswering:
        """The frozen network, loaded at first use."""
        return _load_blip(self.folder, self.checkpoint, self._safetensors, self.device, self.dtype, self._key)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return load_processor(AutoTokenizer, self.folder, source=f"{self._key}={self.folder}", what="its tokenizer")

    @functools.cached_property
    def _answers(self) -> tuple[int, int]:
        """The ids of yes and of no."""
        yes, no = self._tokenizer.convert_tokens_to_ids(["yes", "no"])
        if yes == no or self._tokenizer.unk_token_id in (yes, no):
            raise UsageError(f"{self._key}={self.folder}: its tokenizer does not know yes and no; fetch it again")
        return yes, no

    def __call__(self, images: Tensor, questions: Sequence[str]) -> Tensor:
        """b 3 H W in [0, 1], one question each -> log-odds of yes against no, b, differentiable."""
        tokenizer, (yes, no), network = self._tokenizer, self._answers, self.network  # weights last: they take the longest
        pixels = pictures.check(images, self.name).to(self.device, full_dtype_of(network))
        pixels = pictures.resize(pixels, self.size, crop=False)
        pixels = pictures.normalise(pixels, pictures.CLIP_MEAN, pictures.CLIP_STD)
        # Padded to one length, so that an answer does not depend on the other questions.
        tokens = tokenizer(list(questions), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
        ids, mask = tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)
        words = network.config.text_config.vocab_size
        start, ids[:, 0] = words - 2, words - 1  # [DEC] and [ENC], which BLIP adds to BERT's words: 30522 and 30523
        return _odds(network, pixels, ids, mask, start, yes, no)


class ImageTextToText:
    """Any of transformers' image-text-to-text models (AutoModelForImageTextToText), with its processor: zoo.Vqa.

    It reads the image and "QUESTION Answer yes or no.", as a chat where the processor has a template. The probability of yes is
    that of any single token that spells it ("yes", "Yes", with or without a space before it), no likewise. Images go through the
    model's own processor one by one, in [0, 1] and not rounded to 8 bits, so a bicubic resize may overshoot where the usual one is
    clipped. `differentiable` says whether gradients pass the processor: those that work on tensors (torchvision's) let them,
    those on Pillow's pictures do not. `dtype` is the weights', and what they compute in; images are prepared in float32. No remote
    code is run. Raises UsageError where something is missing.
    """

    def __init__(
        self,
        *,
        path: str | Path,
        name: str | None = None,
        device: torch.device | str = "cpu",
        dtype: DType = "float32",
        weights: str | None = None,
        key: str = "vqa.path",
    ) -> None:
        self.name = Path(path).name if name is None else name
        self.device, self.dtype = torch.device(device), settled(dtype, device)
        [needed] = self.reads(path=path, weights=weights, key=key)
        self.folder = needed.locate()
        read_config(self.folder, source=f"{key}={path}")
        self._safetensors, self._key = needed.found(self.folder).endswith(".safetensors"), key

    @staticmethod
    def reads(*, path: str | Path, weights: str | None = None, key: str = "vqa.path", **_: object) -> tuple[Needed, ...]:
        """What is read: the network, and whatever its processor may be made of."""
        return (network(path, key=key, files=PROCESSOR, weights=weights),)

    @property
    def network(self) -> Any:
        """The frozen network, loaded at first use."""
        return _load_any(self.folder, self._safetensors, self.device, self.dtype)

    @functools.cached_property
    def _processor(self) -> Any:
        from transformers import AutoProcessor

        processor = load_processor(AutoProcessor, self.folder, source=f"{self._key}={self.folder}", what="its processor")
        if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
            raise UsageError(f"{self._key}={self.folder}: its processor is not for images and text")
        return processor

    @functools.cached_property
    def differentiable(self) -> bool:
        """Whether gradients pass the image processor: asked by a picture of noise."""
        with torch.inference_mode(False), torch.enable_grad():
            noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
            try:
                prepared = self._processor.image_processor(images=[noise], do_rescale=False, return_tensors="pt")["pixel_values"]
                [gradient] = torch.autograd.grad(prepared.square().sum(), noise)
            except RuntimeError:  # numpy refuses tensors that need gradients; a copy on the way has no graph
                return False
            return bool((gradient != 0).any())

    @functools.cached_property
    def _answers(self) -> dict[str, list[int]]:
        """The tokens that mean yes, and those that mean no."""
        tokenizer = self._processor.tokenizer
        spelled = {word: [tokenizer.encode(text, add_special_tokens=False) for text in texts] for word, texts in _WORDS.items()}
        found = {
            word: sorted({ids[0] for ids in rows if len(ids) == 1 and ids[0] != tokenizer.unk_token_id})
            for word, rows in spelled.items()
        }
        for word, ids in found.items():
            if not ids:
                raise UsageError(f"{self._key}={self.folder}: its tokenizer has no token for {word!r}")
        if set(found["yes"]) & set(found["no"]):
            raise UsageError(f"{self._key}={self.folder}: its tokenizer does not distinguish yes from no")
        return found

    def _asked(self, question: str) -> str:
        """What the model is to read."""
        processor, text = self._processor, f"{question} Answer yes or no."
        if processor.chat_template is None:
            image = getattr(processor, "image_token", None)
            puts_it = hasattr(processor, "num_query_tokens")  # BLIP-2's kin write the image's tokens themselves
            return f"{image}\n{text}" if isinstance(image, str) and not puts_it else text
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
        return processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)

    def _inputs(self, image: Tensor, question: str) -> dict[str, Tensor]:
        """What the network is given, what is of the image in float32."""
        text = self._asked(question)
        first = self._processor.tokenizer.bos_token
        inputs = self._processor(
            images=[image],
            text=[text],
            return_tensors="pt",
            images_kwargs={"do_rescale": False},
            text_kwargs={"add_special_tokens": not (first and text.startswith(first))},  # templates write it themselves
        )
        return {
            name: value.to(self.device, torch.float32 if value.is_floating_point() else value.dtype)
            for name, value in inputs.items()
            if isinstance(value, Tensor)
        }

    def __call__(self, images: Tensor, questions: Sequence[str]) -> Tensor:
        """b 3 H W in [0, 1], one question each -> log-odds of yes against no, b."""
        images = pictures.check(images, self.name).float().clamp(0, 1)
        if not self.differentiable:
            images = images.detach()
        _ = self._answers  # refused before the weights are loaded
        return torch.stack([self._ask(image, question) for image, question in zip(images, questions, strict=True)])

    def _ask(self, image: Tensor, question: str) -> Tensor:
        network, inputs = self.network, self._inputs(image, question)
        if network.config.is_encoder_decoder:
            start = network.config.get_text_config(decoder=True).decoder_start_token_id
            inputs["decoder_input_ids"] = torch.full_like(inputs["input_ids"][:, :1], start)
        names = [name for name, value in inputs.items() if value.is_floating_point()]

        def odds(*shown: Tensor) -> Tensor:
            """The inputs of these names, each behind an axis of 1: not every processor gives an axis to the picture itself."""
            logits = network(**inputs | {name: value[0] for name, value in zip(names, shown, strict=True)}).logits[0, -1].float()
            yes, no = (torch.logsumexp(logits[self._answers[word]], 0) for word in ("yes", "no"))
            return (yes - no)[None]

        return run_in(network.dtype, odds, *(inputs[name][None] for name in names))[0]


class LabVqa:
    """The lab's small BLIP, for questions like "a red circle to the left of a blue square?": zoo.Vqa.

    Images are resized to 64 px; `dtype` as for `zoo.clip.HubClip`. Raises UsageError where its weights are missing.
    """

    name = "lab-vqa"
    differentiable = True

    def __init__(self, *, device: torch.device | str = "cpu", dtype: DType = "float32", key: str = "vqa") -> None:
        self.device, self.dtype = torch.device(device), settled(dtype, device)
        self.files = (
            locate_lab("vqa.safetensors", key=f"{key}={self.name}", part="vqa"),
            locate_lab("generator/tokenizer/tokenizer.json", key=f"{key}={self.name}", part="generator"),
        )

    @property
    def network(self) -> BlipForQuestionAnswering:
        """The frozen network, loaded at first use."""
        return _load_lab(self.device, self.dtype)

    def __call__(self, images: Tensor, questions: Sequence[str]) -> Tensor:
        """b 3 H W in [0, 1], one question each -> log-odds of yes against no, b, differentiable."""
        from guidedgen.lab import networks, referees
        from guidedgen.lab.world import SIZE

        pixels = pictures.resize(pictures.check(images, self.name).to(self.device, torch.float32), SIZE, crop=False)
        tokenizer = networks.load_tokenizer()
        special = referees.special(tokenizer)
        ids, mask = (tensor.to(self.device) for tensor in referees.tokenise(tokenizer, questions))
        ids[:, 0] = special["[ENC]"]
        words = special["[DEC]"], special["yes"], special["no"]
        return _odds(self.network, pictures.to_model(pixels), ids, mask, *words)


def _odds(network: Any, pixels: Tensor, ids: Tensor, mask: Tensor, start: int, yes: int, no: int) -> Tensor:
    def odds(pixels: Tensor) -> Tensor:
        logits = wide(vision_language.answer(network, pixels, ids, mask, start))
        return logits[:, yes] - logits[:, no]

    return run_in(dtype_of(network), odds, pixels)


def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the authors' checkpoint under transformers' names; positions' numbers, which are no weights, are left out."""
    renames = (
        (r"^visual_encoder\.(pos_embed|cls_token|patch_embed\.proj)", r"vision_model.embeddings.\1"),
        (r"embeddings\.pos_embed$", "embeddings.position_embedding"),
        (r"embeddings\.cls_token$", "embeddings.class_embedding"),
        (r"embeddings\.patch_embed\.proj\.", "embeddings.patch_embedding."),
        (r"^visual_encoder\.blocks\.(\d+)\.", r"vision_model.encoder.layers.\1."),
        (r"(?<=\d\.)attn\.proj\.", "self_attn.projection."),
        (r"(?<=\d\.)attn\.", "self_attn."),
        (r"(?<=\d\.)norm(\d)\.", r"layer_norm\1."),
        (r"^visual_encoder\.norm\.", "vision_model.post_layernorm."),
    )
    renamed = {}
    for name, tensor in state.items():
        if name.endswith("position_ids"):
            continue
        for pattern, new in renames:
            name = re.sub(pattern, new, name)
        renamed[name] = tensor
    return renamed


# Loading may first happen inside inference mode, whose tensors could never be differentiated through afterwards.
@functools.cache
@torch.inference_mode(False)
def _load_blip(
    folder: Path, checkpoint: Path | None, safetensors: bool, device: torch.device, dtype: DType, key: str
) -> BlipForQuestionAnswering:
    from transformers import BlipForQuestionAnswering

    if checkpoint is not None:
        network = _from_authors(folder, checkpoint, key)
        return rounded(network.eval().requires_grad_(False), dtype).to(device)
    kind, what = BlipForQuestionAnswering, "a BLIP that answers"
    return load_pretrained(kind, folder, what=what, safetensors=safetensors, device=device, dtype=getattr(torch, dtype))


def _from_authors(folder: Path, checkpoint: Path, key: str) -> Any:
    from transformers import BlipConfig, BlipForQuestionAnswering

    state = rename(read_state(checkpoint, key=f"{key}: checkpoint"))
    with readable(folder, "its config"):
        config = BlipConfig.from_pretrained(folder, local_files_only=True)
    positions = state.get("vision_model.embeddings.position_embedding")
    if positions is None:
        raise UsageError(f"{key}: checkpoint={checkpoint}: holds no BLIP of its authors'")
    config.vision_config.image_size = round((positions.shape[1] - 1) ** 0.5) * config.vision_config.patch_size
    with torch.random.fork_rng(devices=[]):  # it is initialised at random first
        network = BlipForQuestionAnswering(config)
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    wrong = [name for name in expected | state if name not in state or state[name].shape != expected.get(name)]
    if wrong:
        raise UsageError(f"{key}: checkpoint={checkpoint}: not of {folder}: {len(wrong)} tensors differ, {wrong[0]} first")
    network.load_state_dict(state)
    return network.float()


@functools.cache
def _load_any(folder: Path, safetensors: bool, device: torch.device, dtype: DType) -> Any:
    from transformers import AutoModelForImageTextToText

    kind, what = AutoModelForImageTextToText, "an image-text-to-text model"
    return load_pretrained(kind, folder, what=what, safetensors=safetensors, device=device, dtype=getattr(torch, dtype))


@functools.cache
@torch.inference_mode(False)
def _load_lab(device: torch.device, dtype: DType) -> BlipForQuestionAnswering:
    from guidedgen.lab.referees import load_vqa

    return rounded(copy.deepcopy(load_vqa()), dtype).to(device)

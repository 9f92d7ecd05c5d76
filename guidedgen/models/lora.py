"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) from elsewhere, put into a model's networks by diffusers.

Names that are understood: diffusers' (a part's name before a module's, as in unet. and text_encoder., of 2023 and of today), those
of one network alone (as its save_lora_adapter writes them), PEFT's (base_model.model.), and what diffusers' loader of the family
converts: kohya's for Stable Diffusion 1, 2 and XL, which most files of Civitai have (lora_unet_, lora_te_), and kohya's, ComfyUI's
and XLabs' for FLUX. The strength is alpha / rank: alpha is read from tensors of that name, diffusers' metadata or PEFT's config;
without one it is the rank.

Adapters are kept in float32 also where the network is not: their updates are lost below that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from guidedgen.basics.errors import UsageError
from guidedgen.models.learnable import DENOISERS, Learnable
from guidedgen.models.tensors import check_numbers, first

_KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lora_transformer_")
_MARKS = (
    ".lora_",
    ".lora.",
    "_lora.",
    "_lora1.",
    "_lora2.",
    ".alpha",
    ".dora_scale",
    ".lokr_",
    ".hada_",
    ".oft_",
    "base_model.model.",
)
_HALVES = {"A.weight": "lora_A", "B.weight": "lora_B"}
_PEFT = "base_model.model."
_UNUSABLE = ("dora_scale", "lokr_", "hada_", "oft_", "lora_mid")
_SECOND = ("lora_te2_", "text_encoder_2.")
# Of PEFT's options, those that say how strong an adapter is, and those that say what it was made for and how it was trained.
_STRENGTH = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")
_IDLE = ("peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode",
         "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "fan_in_fan_out",
         "init_lora_weights", "megatron_core", "qalora_group_size", "eva_config", "runtime_config")  # fmt: skip
_DEFAULTS = [("bias", "none")]
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
    """What diffusers' loaders take, and the same by network in PEFT's names: `<module>.lora_A.weight`, `<module>.lora_B.weight`.

    `metadata` are options of PEFT's LoraConfig, by network; of a network without, alpha is the rank.
    """

    state: Mapping[str, Tensor]
    metadata: Mapping[str, dict[str, Any]]
    tensors: Mapping[str, Mapping[str, Tensor]]


def is_adapter(names: Mapping[str, Any]) -> bool:
    """Whether names in a file are those of an adapter, of whatever kind."""
    return any(name.startswith(_KOHYA) or any(mark in name for mark in _MARKS) for name in names)


def parse(
    state: Mapping[str, Tensor],
    header: Mapping[str, str],
    config: Mapping[str, Any] | None,
    networks: Mapping[str, nn.Module],
    takes: Learnable,
    source: str,
    part: str = "",
) -> Adapter:
    """An adapter for networks that may be on the device "meta", as its tensors may.

    `header` is the file's metadata, `config` PEFT's adapter_config.json, `part` the network that it is for where its folder says
    so. Raises UsageError where not all of it can be used.
    """
    if odd := [name for name in state if any(mark in name for mark in _UNUSABLE)]:
        raise UsageError(f"{source}: not a plain LoRA (DoRA or LyCORIS: {first(odd)}), which diffusers cannot use in full")
    if "text_encoder_2" not in takes.adapted and (second := [name for name in state if name.startswith(_SECOND)]):
        raise UsageError(f"{source}: a LoRA of SDXL or another model of two text encoders ({first(second)}); {takes.name} has one")
    check_numbers({name: value for name, value in state.items() if not name.endswith(".alpha")}, source)
    outlines = converted(_with_strength(outlined(state), takes, source), networks, takes, source)
    used = _names(list(outlines.values()))
    if unused := [name for name in state if name not in used and not name.endswith(".alpha")]:
        raise UsageError(f"{source}: would not use {first(unused)}, which diffusers leaves out")
    if any(value.is_meta for value in state.values()):
        found = outlines
    else:
        found = converted(_with_strength(state, takes, source), networks, takes, source)
    found, metadata = _prefixed(found, _metadata(header, config, source), networks, takes, source, part)
    try:
        tensors = {part: _peft_names(part, _of(part, found), networks[part]) for part in takes.adapted}
    except (ValueError, KeyError, IndexError) as error:
        raise UsageError(f"{source}: {_UNKNOWN} ({' '.join(str(error).split())[:200]})") from error
    if strange := [name for name in found if not name.startswith(tuple(f"{part}." for part in takes.adapted))]:
        raise UsageError(f"{source}: would not use {first(strange)}")
    for part in takes.adapted:
        _check_shapes(part, tensors[part], networks[part], source)
    options = {part: _of(part, metadata or {}) for part in takes.adapted if tensors[part]}
    configs = {part: _options(tensors[part], options, source) for part, options in options.items() if options}
    return Adapter(state=found, metadata=configs, tensors=tensors)


def load(adapter: Adapter, network: Any, part: str, takes: Learnable, name: str, scale: float, source: str) -> None:
    """Adds what is for this part of the model, under this name, to the adapters that its network has."""
    if not adapter.tensors[part]:
        return
    with several():
        state, metadata = dict(adapter.state), _named(part, adapter)
        if part in DENOISERS:
            network.load_lora_adapter(state, prefix=part, adapter_name=name, metadata=metadata)
        else:
            _loader(takes).load_lora_into_text_encoder(state, None, network, prefix=part, adapter_name=name, metadata=metadata)
    settle(network, name, scale, adapter.tensors[part], source)


def settle(network: nn.Module, name: str, scale: float, tensors: Mapping[str, Tensor] | None = None, source: str = "") -> None:
    """Makes the adapter of this name one of those that act, in float32 at least, `scale` times as strong as it says itself.

    `tensors` are its numbers, all of which have to be used; what was rounded to the network's type is set to them again.
    """
    from peft.tuners.lora import LoraLayer

    left, lacking = dict(tensors or {}), []
    for path, module in network.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        module.set_adapter(list(module.lora_A))  # all of them act
        if name not in module.lora_A:
            continue
        module.set_scale(name, scale)
        for half in _HALVES.values():
            layer = getattr(module, half)[name]
            layer.to(torch.promote_types(layer.weight.dtype, torch.float32))
            value = left.pop(f"{path}.{half}.weight", None)
            if value is not None:
                layer.weight.data.copy_(value)
            elif tensors is not None:
                lacking.append(f"{path}.{half}")
    network.requires_grad_(False)
    if left or lacking:
        raise UsageError(f"{source}: would not use {first(left)}" if left else f"{source}: lacks {first(lacking)}")


@contextlib.contextmanager
def several() -> Iterator[None]:
    """PEFT warns of a second adapter, which is what is wanted here, and of modules whose names end as those of an adapter's do,
    which it leaves alone; and it draws numbers that are then written over.
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", "Already found a `peft_config`")
        warnings.filterwarnings("ignore", "While injecting the PEFT adapters, an inconsistency")
        yield


def _metadata(header: Mapping[str, str], config: Mapping[str, Any] | None, source: str) -> dict[str, Any] | None:
    """What the file says of the adapter's shape and strength: keys of PEFT's LoraConfig, a network's name before each."""
    if config is not None:
        return dict(config)
    text = header.get("lora_adapter_metadata")
    if not text:
        return None
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{source}: its lora_adapter_metadata is no JSON ({error})") from error
    if not isinstance(metadata, dict):
        raise UsageError(f"{source}: its lora_adapter_metadata is no mapping")
    return metadata


def _loader(takes: Learnable) -> Any:
    """diffusers' mixin that loads the family's LoRA."""
    from diffusers import loaders

    return getattr(loaders, takes.loader)


def _with_strength(state: Mapping[str, Tensor], takes: Learnable, source: str) -> dict[str, Tensor]:
    """With alpha / rank multiplied into the outer half.

    diffusers (0.42) gives all modules of a UNet the alpha that most of them have, and drops those of FLUX's last layer; here each
    keeps its own. What is then converted for FLUX needs an alpha nevertheless: the rank, which changes nothing.
    """
    if any(name.startswith(_KOHYA) for name in state) and (strange := [name for name in state if not name.startswith(_KOHYA)]):
        raise UsageError(f"{source}: kohya's names and others ({first(strange)}) in one file")
    flux = "Flux" in takes.loader
    halves = [("lora_down", "lora_up"), *([("lora_A", "lora_B")] if flux else [])]
    plain = {name: value for name, value in state.items() if not name.endswith(".alpha")}
    for name, alpha in state.items():
        if name in plain:
            continue
        module = name.removesuffix(".alpha")
        pairs = [(f"{module}.{inner}.weight", f"{module}.{outer}.weight") for inner, outer in halves]
        inner, outer = next(((inner, outer) for inner, outer in pairs if inner in plain and outer in plain), ("", ""))
        if not inner or alpha.numel() != 1 or not plain[inner].ndim or not len(plain[inner]):
            raise UsageError(f"{source}: {name} belongs to no lora_down and lora_up")
        if not (strength := float(alpha)) > 0:
            raise UsageError(f"{source}: {name} is {strength:g}; a strength above 0 is needed")
        plain[outer] = plain[outer].float() * (strength / len(plain[inner]))
    if flux:
        downs = [name for name in plain if name.endswith(".lora_down.weight") and not name.startswith("transformer.")]
        plain |= {f"{name.removesuffix('.lora_down.weight')}.alpha": torch.tensor(float(len(plain[name]))) for name in downs}
    return plain


_UNKNOWN = "diffusers does not know these names"


def converted(state: Mapping[str, Tensor], networks: Mapping[str, nn.Module], takes: Learnable, source: str) -> dict[str, Tensor]:
    """In diffusers' names, by its loader of the family. FLUX's first and last layers come without their network's name, and would
    not be read: here they get it.
    """
    state = {name if "double_blocks" in name else name.replace(_PEFT, ""): value for name, value in state.items()}
    more = {"unet_config": networks["unet"].config} if "unet" in networks else {}
    try:
        found = _loader(takes).lora_state_dict(dict(state), **more)
    except Exception as error:  # its converters assert, look up and split
        raise UsageError(f"{source}: {_UNKNOWN} ({' '.join(str(error).split())[:200] or type(error).__name__})") from error
    found = found[0] if isinstance(found, tuple) else found
    prefixes, modules = tuple(f"{part}." for part in takes.adapted), {name for name, _ in networks[takes.denoiser].named_modules()}
    return {
        f"{takes.denoiser}.{name}"
        if name not in state and not name.startswith(prefixes) and name.partition(".lora_")[0] in modules
        else name: value
        for name, value in found.items()
    }


class Outline(Tensor):
    """A tensor without numbers (on the device "meta") that knows of which tensors of a file it was made: what is done to the file's
    tensors is first done to these, so that none is left out unseen. Asked for its truth, it is false.
    """

    names: frozenset[str]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = super().__torch_function__(func, types, args, kwargs or {})
        _name(made, _names(args))
        return made

    def __bool__(self) -> bool:
        return False

    def item(self) -> Any:
        return False


def outlined(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outlines of a file's tensors; alphas are themselves."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith(".alpha"):
            found[name] = value
            continue
        found[name] = torch.empty(value.shape, dtype=value.dtype, device="meta").as_subclass(Outline)
        _name(found[name], frozenset([name]))
    return found


def _names(value: Any) -> frozenset[str]:
    if isinstance(value, Outline):
        return getattr(value, "names", frozenset())
    return frozenset[str]().union(*map(_names, value)) if isinstance(value, (list, tuple)) else frozenset()


def _name(value: Any, names: frozenset[str]) -> None:
    if isinstance(value, Outline):
        value.names = names
    elif isinstance(value, (list, tuple)):
        for each in value:
            _name(each, names)


def _prefixed(
    state: Mapping[str, Tensor], metadata: dict[str, Any] | None, networks: Mapping[str, nn.Module], takes: Learnable, source: str,
    part: str,
) -> tuple[dict[str, Tensor], dict[str, Any] | None]:  # fmt: skip
    """With the network's name before each key, where no key has one: `part`, or that of the network whose modules they name."""
    prefixes = tuple(f"{part}." for part in takes.adapted)
    if any(name.startswith(prefixes) for name in state):
        if metadata is not None and not any(key.startswith(prefixes) for key in metadata):
            metadata = {f"{prefix}{key}": value for prefix in prefixes for key, value in metadata.items()}
        return dict(state), metadata
    part = part or _owner(state, networks, takes, source)
    return (
        {f"{part}.{name}": value for name, value in state.items()},
        None if metadata is None else {f"{part}.{key}": value for key, value in metadata.items()},
    )


def _owner(state: Mapping[str, Tensor], networks: Mapping[str, nn.Module], takes: Learnable, source: str) -> str:
    """The network whose modules these names are: of several text encoders the one whose shapes they fit."""
    tops = {name.removeprefix("text_model.").split(".")[0] for name in state}
    found = []
    for part in takes.adapted[1:]:
        modules = {name.removeprefix("text_model.").split(".")[0] for name, _ in networks[part].named_modules()}
        if tops <= modules:
            found.append(part)
    if len(found) < 2:
        return found[0] if found else takes.adapted[0]
    fits = [part for part in found if _fits(part, state, networks[part], source)]
    if len(fits) > 1:
        raise UsageError(
            f"{source}: does not say which it is for, {' or '.join(fits)}; put one of these and a dot before its names"
        )
    return (fits or found)[0]


def _fits(part: str, state: Mapping[str, Tensor], network: nn.Module, source: str) -> bool:
    try:
        _check_shapes(part, _peft_names(part, dict(state), network), network, source)
    except (UsageError, ValueError):
        return False
    return True


def _of(part: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a network, without its name."""
    return {name.removeprefix(f"{part}."): value for name, value in values.items() if name.startswith(f"{part}.")}


def _peft_names(part: str, state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """As diffusers renames them when it loads them."""
    from diffusers.utils import state_dict_utils as names

    if not state:
        return {}
    if part in DENOISERS:
        return state if "lora_A" in next(iter(state)) else names.convert_unet_state_dict_to_peft(state)
    converted = names.convert_state_dict_to_peft(names.convert_state_dict_to_diffusers(state))
    if not hasattr(network, "text_model"):
        converted = {name.removeprefix("text_model."): value for name, value in converted.items()}
    return converted


def _check_shapes(part: str, tensors: Mapping[str, Tensor], network: nn.Module, source: str) -> None:
    """Raises UsageError unless these are two halves of the same rank for modules of the network."""
    weights = {name.removesuffix(".weight"): tuple(value.shape) for name, value in network.named_parameters()}
    halves: dict[str, dict[str, tuple[int, ...]]] = {}
    strange = []
    for name, value in tensors.items():
        module, _, half = name.partition(".lora_")
        if half in _HALVES and len(weights.get(module, ())) in (2, 4) and "embedding" not in module.rpartition(".")[2]:
            halves.setdefault(module, {})[half] = tuple(value.shape)
        else:
            strange.append(name)
    if strange:
        raise UsageError(f"{source}: would not use {first(strange)}: the {part} has no such modules, or LoRA no such tensors")
    for module, found in halves.items():
        if len(found) < 2:
            raise UsageError(f"{source}: {module} of the {part} has only one of the two halves of a LoRA")
        out, *rest = weights[module]
        inner, outer = found["A.weight"], found["B.weight"]
        rank = inner[0] if inner else 0
        if not rank or inner != (rank, *rest) or outer != (out, rank, *(1 for _ in rest[1:])):
            raise UsageError(
                f"{source}: halves of shapes {inner} and {outer} do not fit {module} of this {part}, {weights[module]}"
            )


def _options(tensors: Mapping[str, Tensor], found: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Those options of PEFT's LoraConfig that say how strong an adapter is, for exactly the modules that it has.

    Raises UsageError where PEFT does not understand them, or they ask for more than a plain LoRA, or for another rank.
    """
    from peft import LoraConfig

    if found.get("peft_type", "LORA") != "LORA":
        raise UsageError(f"{source}: an adapter of PEFT's kind {found['peft_type']}; only LORA is supported")
    plain = {field.name for field in dataclasses.fields(LoraConfig)} & {*_STRENGTH, *_IDLE}
    more = [f"{key}={value}" for key, value in found.items() if key not in plain and value and (key, value) not in _DEFAULTS]
    if found.get("init_lora_weights", True) not in _PLAIN_STARTS:  # the others have changed the network's own weights
        more.append(f"init_lora_weights={found['init_lora_weights']}")
    if more:
        raise UsageError(f"{source}: more than a plain LoRA, which is all that can be used in full ({first(more)})"[:500])
    options = {key: found[key] for key in _STRENGTH if key in found}
    options |= {key: options.get(key) or {} for key in ("rank_pattern", "alpha_pattern")}
    try:
        made = LoraConfig(**options)
        patterns: list[dict[str, Any]] = [dict(options["rank_pattern"]), dict(options["alpha_pattern"])]
        ranks = {made.r, *patterns[0].values()}
        numbers = [*ranks, made.lora_alpha, *patterns[1].values()]
        for pattern in (*patterns[0], *patterns[1]):
            re.compile(pattern)
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise UsageError(f"{source}: PEFT does not understand its options ({' '.join(str(error).split())})"[:500]) from error
    if wrong := [value for value in numbers if type(value) not in (int, float) or not 0 < value < 1e6]:
        raise UsageError(f"{source}: {first(wrong)} for a rank or an alpha; a number above 0 is needed"[:500])
    if odd := {len(value) for name, value in tensors.items() if name.endswith(".lora_A.weight")} - ranks:
        raise UsageError(f"{source}: its options say rank {made.r}, and it has tensors of rank {first(sorted(odd))}")
    return {**options, "target_modules": sorted({name.partition(".lora_")[0] for name in tensors})}


def _named(part: str, adapter: Adapter) -> dict[str, Any] | None:
    """As diffusers takes them: with the network's name before each."""
    options = adapter.metadata.get(part)
    return None if options is None else {f"{part}.{key}": value for key, value in options.items()}

"""What a SANA folder says of itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from guidedgen.basics.errors import UsageError
from guidedgen.models import folder
from guidedgen.models.folder import LAYERS, NUMBER, NUMBERS, REAL, STEPS, Rule, TransformerFolder, texts, whole
from guidedgen.process.grid import FlowSchedule
from guidedgen.zoo.pretrained import load_processor

if TYPE_CHECKING:
    from transformers import GemmaTokenizer

_DPM, _EULER = "DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"
_CLASSES = {
    "transformer": ("SanaTransformer2DModel",),
    "vae": ("AutoencoderDC",),
    "text_encoder": ("Gemma2Model",),
    "tokenizer": ("GemmaTokenizer", "GemmaTokenizerFast"),
    "scheduler": (_DPM, _EULER),
}
# Options of each scheduler that change its grid or its step: what diffusers takes where there are none, and what they have to be.
_DEFAULT: Mapping[str, Mapping[str, Any]] = {
    _DPM: {
        "use_flow_sigmas": False, "prediction_type": "epsilon", "algorithm_type": "dpmsolver++", "solver_order": 2,
        "solver_type": "midpoint", "final_sigmas_type": "zero", "thresholding": False, "use_karras_sigmas": False,
        "use_exponential_sigmas": False, "use_beta_sigmas": False, "use_lu_lambdas": False, "use_dynamic_shifting": False,
    },
    _EULER: {
        "use_dynamic_shifting": False, "use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False,
        "invert_sigmas": False, "stochastic_sampling": False, "shift_terminal": None,
    },
}  # fmt: skip
_NEEDED: Mapping[str, Mapping[str, Any]] = {
    _DPM: {**_DEFAULT[_DPM], "use_flow_sigmas": True, "prediction_type": "flow_prediction"}, _EULER: _DEFAULT[_EULER],
}  # fmt: skip
_GEMMAS = {"Gemma2Model", "Gemma2ForCausalLM"}  # whose weights hold a Gemma2Model
_TOKENS = 300  # that the transformer was trained with; no config says so

_VOCABULARY: Rule = ("a whole number above 0", lambda value: whole(value, 10**6))
_SWITCH: Rule = ("true or false", lambda value: isinstance(value, bool))
_MAYBE: Rule = ("null or a whole number above 0", lambda value: value is None or whole(value))
_SCALE: Rule = ("null or a number above 0", lambda value: value is None or REAL[1](value))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SanaFolder(TransformerFolder):
    """The folder of a SanaPipeline: SANA or SANA 1.5, or what was trained from them."""

    SUPPORTED: ClassVar = "supported: SANA's and SANA 1.5's text-to-image models, a SanaPipeline of " + ", ".join(
        " or ".join(_CLASSES[part]) for part in ("transformer", "vae", "text_encoder", "scheduler")
    )
    PIPELINES: ClassVar = ("SanaPipeline",)
    CLASSES: ClassVar = _CLASSES
    WEIGHTS: ClassVar = {"transformer": folder.DIFFUSERS, "vae": folder.DIFFUSERS, "text_encoder": folder.TRANSFORMERS}
    VOCABULARIES: ClassVar = (("tokenizer/tokenizer.json",),)
    DEFAULTS: ClassVar = {
        "transformer": {
            "in_channels": 32, "out_channels": 32, "num_attention_heads": 70, "attention_head_dim": 32, "cross_attention_dim": 2240,
            "caption_channels": 2304, "sample_size": 32, "patch_size": 1, "guidance_embeds": False, "timestep_scale": 1.0,
        },
        "vae": {
            "in_channels": 3, "latent_channels": 32, "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
            "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024], "scaling_factor": 1.0,
        },
        "text_encoder": {"hidden_size": 2304, "vocab_size": 256000},
        "scheduler": {"flow_shift": 1.0, "shift": 1.0, "num_train_timesteps": 1000},
    }  # fmt: skip
    RULES: ClassVar = {
        "transformer": {
            "in_channels": NUMBER, "out_channels": _MAYBE, "num_attention_heads": NUMBER, "attention_head_dim": NUMBER,
            "num_layers": LAYERS, "num_cross_attention_heads": NUMBER, "cross_attention_head_dim": NUMBER,
            "cross_attention_dim": NUMBER, "caption_channels": NUMBER, "mlp_ratio": REAL, "sample_size": NUMBER,
            "patch_size": NUMBER, "interpolation_scale": _SCALE, "guidance_embeds": _SWITCH, "timestep_scale": REAL,
        },
        "vae": {
            "in_channels": NUMBER, "latent_channels": NUMBER, "attention_head_dim": NUMBER, "encoder_block_out_channels": NUMBERS,
            "decoder_block_out_channels": NUMBERS, "scaling_factor": REAL,
        },
        "text_encoder": {
            "vocab_size": _VOCABULARY, "hidden_size": NUMBER, "intermediate_size": NUMBER, "num_hidden_layers": LAYERS,
            "num_attention_heads": NUMBER, "num_key_value_heads": NUMBER, "head_dim": NUMBER,
        },
        "scheduler": {"flow_shift": REAL, "shift": REAL, "num_train_timesteps": STEPS},
    }  # fmt: skip
    REQUIRED: ClassVar = {"transformer": ("sample_size",), "vae": ("scaling_factor",)}
    ENDS: ClassVar = 1  # Gemma's start

    @property
    def schedule(self) -> FlowSchedule:
        """The flow, with the shift of its grids."""
        scheduler = self.configs["scheduler"]
        shift = scheduler["flow_shift" if self._scheduler == _DPM else "shift"]
        return FlowSchedule(shift=float(shift), steps=scheduler["num_train_timesteps"])

    @property
    def _scheduler(self) -> str:
        """The class that diffusers makes of the scheduler's config."""
        return str(self.configs["index"]["scheduler"][1])

    @property
    def vae_factor(self) -> int:
        return int(2 ** (len(self.configs["vae"]["encoder_block_out_channels"]) - 1))

    @property
    def max_tokens(self) -> int:
        """Tokens that the transformer is given, Gemma's start included."""
        return _TOKENS

    def unsupported(self) -> Mapping[str, Any]:
        transformer, vae, scheduler, gemma = (
            self.configs[part] for part in ("transformer", "vae", "scheduler", "text_encoder")
        )  # fmt: skip
        found = {**_DEFAULT[self._scheduler], **scheduler}
        odd = [f"{key}={found[key]}" for key, needed in _NEEDED[self._scheduler].items() if found[key] != needed]
        takes, gives = transformer["in_channels"], transformer["out_channels"] or transformer["in_channels"]
        width, text = transformer["num_attention_heads"] * transformer["attention_head_dim"], transformer["caption_channels"]
        states, blocks = gemma["hidden_size"], [len(vae[f"{half}_block_out_channels"]) for half in ("encoder", "decoder")]
        return {
            f"a {self._scheduler} with {', '.join(odd)}": odd,
            "a transformer that is given its guidance (guidance_embeds=true, as SANA-Sprint's)": transformer["guidance_embeds"],
            # Twice as many: with a variance, which is not read.
            f"a transformer of {takes} input and {gives} output channels": gives not in (takes, 2 * takes),
            f"a transformer of {takes} channels with a VAE of {vae['latent_channels']}": takes != vae["latent_channels"],
            f"a transformer with cross_attention_dim={transformer['cross_attention_dim']} and states of {width} numbers": (
                transformer["cross_attention_dim"] != width
            ),
            f"a transformer for texts of {text} numbers a token with a Gemma of {states}": text != states,
            f"a transformer of patches of {self.patch} on latents of side {self.latent_side}": self.latent_side % self.patch != 0,
            f"a VAE of {blocks[0]} blocks to encode and {blocks[1]} to decode": blocks[0] != blocks[1],
            f"a text_encoder of type {gemma.get('model_type')}": (
                gemma.get("model_type", "gemma2") != "gemma2" or not _GEMMAS.issuperset(texts(gemma.get("architectures")))
            ),
            **self.common(),
        }

    def load_gemma_tokenizer(self) -> GemmaTokenizer:
        """Gemma's tokenizer, which fills texts up at their end. Raises UsageError where it has more tokens than Gemma, or begins no
        text with its start, which the transformer is always given.
        """
        from transformers import GemmaTokenizer

        tokenizer = load_processor(GemmaTokenizer, self.path / "tokenizer", source=self.source, what="its tokenizer")
        tokenizer.padding_side = "right"
        size = self.configs["text_encoder"]["vocab_size"]
        if len(tokenizer) > size:
            raise UsageError(f"{self.source}: its tokenizer has {len(tokenizer)} tokens; its text encoder has {size}")
        if tokenizer("").input_ids != [tokenizer.bos_token_id] or tokenizer.pad_token_id is None:
            raise UsageError(
                f"{self.source}: its tokenizer does not begin texts with a start, and fill them up; fetch tokenizer/ again"
            )
        return tokenizer

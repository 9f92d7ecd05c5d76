"""The flow starts out looking at its neighbours, learns from the generator and from data, resumes, and ships as diffusers reads it."""

import functools
import itertools
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor

from guidedgen.basics.errors import UsageError
from guidedgen.lab import captions, exam, fitting, flow, networks, shipping, training
from guidedgen.lab.captions import Description
from guidedgen.lab.fitting import Part, Settings, fit
from guidedgen.lab.world import COMMON_SHAPES


@pytest.fixture(scope="module")
def generator() -> tuple[Any, Any]:
    """An untrained generator: UNet and text encoder."""
    torch.manual_seed(0)
    text = training.build_text_encoder(networks.train_tokenizer())
    return training.build_unet().eval().requires_grad_(False), text.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def clip() -> Any:
    torch.manual_seed(1)
    return networks.build_clip("guide", networks.train_tokenizer().get_vocab_size()).eval().requires_grad_(False)


def _ids() -> Tensor:
    return networks.tokenize(networks.train_tokenizer(), ["a red circle to the left of a blue star", "", "a green ring"])


def test_local_heads_look_at_their_neighbour() -> None:
    torch.manual_seed(0)
    network = flow.build_transformer()
    tokens = F.layer_norm(network.pos_embed(torch.zeros(1, 4, 16, 16)), (128,))
    x, y = 4, 3
    for i, block in enumerate(network.transformer_blocks):
        q, k = (layer(tokens).unflatten(-1, (4, 32)).transpose(1, 2)[0] for layer in (block.attn2.to_q, block.attn2.to_k))
        weights = (q @ k.transpose(1, 2) / 32**0.5).softmax(-1)
        for head, (right, down) in enumerate(flow._OFFSETS[i % 2]):
            most = int(weights[head, 8 * y + x].argmax())
            assert (most % 8 - x, most // 8 - y) == (right, down)
            assert weights[head, 8 * y + x, most] > 0.5


def _mixed(network: Any) -> Any:
    """The network with no weight at zero, so that every part counts."""
    for p in network.parameters():
        if p.abs().max() == 0:
            torch.nn.init.normal_(p, std=0.05)
    return network.eval().requires_grad_(False)


def test_text_encoders_say_what_the_lab_ones_say(generator: tuple[Any, Any], clip: Any) -> None:
    ids, text = _ids(), generator[1]
    encoders = flow.first_text_encoder(text), flow.second_text_encoder(clip)
    sequence, pooled, own = flow.encode(encoders, ids)
    theirs = text(ids, output_hidden_states=True)
    torch.testing.assert_close(own, theirs.last_hidden_state, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sequence[:, :-1, :128], theirs.hidden_states[-1] / 16, atol=1e-4, rtol=1e-4)
    assert (sequence[:, -1] == 0).all()
    torch.testing.assert_close(pooled[:, :128], theirs.pooler_output, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(pooled[:, 128:], clip.encode_text(ids), atol=1e-4, rtol=1e-4)


def test_standardised_inputs_count_alike() -> None:
    torch.manual_seed(0)
    network = flow.build_transformer(32, 2, 2)
    weight, bias = (p.clone() for p in network.context_embedder.parameters())
    sequence = torch.randn(50, 9, 256) * torch.logspace(-1, 2, 256) + 3
    flow.standardise_inputs(network, sequence, torch.randn(50, 256))
    scale, middle = sequence.std((0, 1)), sequence.mean((0, 1))
    expected = ((sequence - middle) / scale) @ weight.T + bias
    torch.testing.assert_close(network.context_embedder(sequence), expected, atol=0.05, rtol=0.02)


class _Gaussian:
    """The perfect noise prediction for data of standard deviation 1/2."""

    def __call__(self, x: Tensor, t: Tensor, text: Tensor) -> types.SimpleNamespace:
        levels = training.alphas_cumprod()
        below = t.long().clamp(max=998)
        a = torch.lerp(levels[below].logit(), levels[below + 1].logit(), t - below).sigmoid()[:, None, None, None]
        return types.SimpleNamespace(sample=(1 - a).sqrt() * x / (a / 4 + 1 - a))


def test_the_teachers_velocity_is_the_flows_own() -> None:
    s = torch.tensor([0.05, 0.3, 0.5, 0.9, 0.93])
    x = torch.randn(5, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    found = flow.teacher_velocity(_Gaussian(), training.alphas_cumprod(), x, s, torch.zeros(5))  # type: ignore[arg-type]
    level = s[:, None, None, None]
    variance = (1 - level).square() / 4 + level.square()
    torch.testing.assert_close(found, (level - (1 - level) / 4) / variance * x, atol=1e-3, rtol=1e-3)


def test_levels_and_copies_cover_what_sampling_needs() -> None:
    draw = torch.Generator().manual_seed(0)
    s = flow.draw_levels(10_000, draw)
    assert ((s > 0) & (s < 1)).all()
    assert (s > 0.95).float().mean() > 0.02
    assert (s < 0.1).float().mean() > 0.01
    copies = [flow.draw_copies(draw) for _ in range(1000)]
    assert min(copies) == 1
    assert 500 < max(copies) <= 512
    assert 0.4 < copies.count(flow.ZEROS) / 1000 < 0.6


def test_a_refined_network_sees_and_draws_what_the_coarse_one_does() -> None:
    """Where all pixels of a patch are alike, before the blocks and behind them; with the places of its pixels around the patch's."""
    torch.manual_seed(0)
    coarse = _mixed(flow.build_transformer(32, 2, 2))
    fine = flow.refined(coarse)
    assert (fine.config.patch_size, fine.config.pos_embed_max_size) == (1, 16)
    x = torch.randn(1, 4, 8, 8).repeat_interleave(2, 2).repeat_interleave(2, 3)
    few, many = coarse.pos_embed.proj(x), fine.pos_embed.proj(x)
    torch.testing.assert_close(many, few.repeat_interleave(2, 2).repeat_interleave(2, 3), rtol=1e-5, atol=1e-5)
    hidden = torch.randn(1, 7, 32)
    drawn = coarse.proj_out(hidden).unflatten(2, (2, 2, 4)).mean((2, 3))
    torch.testing.assert_close(fine.proj_out(hidden), drawn, rtol=1e-5, atol=1e-5)
    wide, narrow = (network.pos_embed.pos_embed.unflatten(1, (side, side)) for network, side in ((fine, 16), (coarse, 8)))
    for frequency in (0, 3):  # of y and of x, sines: at 4 and 5 of 16 are 1.75 and 2.25 of 8, and so for all others
        rate = 10_000 ** (-frequency / 8)
        for axis, table in ((0, wide[0, 5, :, frequency]), (1, wide[0, :, 5, 16 + frequency])):
            del axis
            torch.testing.assert_close(table, torch.sin(rate * ((torch.arange(16) + 0.5) / 2 - 0.5)), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(narrow[0, 5, :, frequency], torch.sin(rate * torch.arange(8.0)), rtol=1e-4, atol=1e-4)
    blocks = [dict(network.transformer_blocks.named_parameters()) for network in (coarse, fine)]
    assert all(torch.equal(value, blocks[1][name]) for name, value in blocks[0].items())


def test_a_refined_network_keeps_its_places_in_its_file(tmp_path: Path) -> None:
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    fine = flow.refined(_mixed(flow.build_transformer(32, 2, 2)))
    fine.save_pretrained(tmp_path)
    loaded = SD3Transformer2DModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.pos_embed.pos_embed, fine.pos_embed.pos_embed)
    own = SD3Transformer2DModel(**{key: value for key, value in fine.config.items() if not key.startswith("_")})
    assert not torch.allclose(own.pos_embed.pos_embed, fine.pos_embed.pos_embed, atol=0.1)  # what it would be without


def test_the_flow_starts_from_the_coarse_checkpoint(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    network = flow.build_transformer(32, 2, 2)
    with pytest.raises(UsageError, match=r"flow-coarse\.pt: is missing; train it first: .* --parts flow-coarse"):
        fitting.trained(network, "flow-coarse", settings)
    torch.manual_seed(5)
    other = _mixed(flow.build_transformer(32, 2, 2))
    average = {"n_averaged": torch.tensor(3), **{f"module.{key}": value for key, value in other.state_dict().items()}}
    torch.save({"average": average}, tmp_path / "flow-coarse.pt")
    for key, value in fitting.trained(network, "flow-coarse", settings).state_dict().items():
        assert torch.equal(value, other.state_dict()[key])
    with pytest.raises(UsageError, match="no checkpoint of flow-coarse"):
        fitting.trained(flow.build_transformer(64, 2, 2), "flow-coarse", settings)


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a small flow to be trained in a folder, always from the same weights, by the shipped generator."""
    if not all((networks.WEIGHTS / name).exists() for name in ("generator/unet", "clip-guide.safetensors")):
        pytest.skip("no generator or no guide CLIP is shipped")
    monkeypatch.setattr(flow, "build_transformer", functools.partial(flow.build_transformer, 32, 2, 2))
    monkeypatch.setattr(training, "_FLOW_BATCH", 4)
    unet, text = networks.load_generator()
    encoders, vae = (flow.first_text_encoder(text), flow.second_text_encoder(networks.load_clip("guide"))), networks.load_vae()

    def make(folder: Path, steps: int, *, fine: bool = False) -> Part:
        torch.manual_seed(3)
        coarse = flow.build_transformer()
        part = training.rectified_flow(_settings(folder), vae, unet, encoders, networks.train_tokenizer(), coarse, fine=fine)
        part.steps, part.warm_up = steps, 5
        return part

    return make


def _settings(folder: Path) -> Settings:
    folder.mkdir(exist_ok=True)
    return Settings(folder=folder, scale=0.001)


def _fit(part: Part, folder: Path, steps: int) -> Any:
    part.steps = 1000 * steps
    with Progress(disable=True) as progress:
        return fit(part, _settings(folder), progress)


def _watched(part: Part, stop: int | None = None) -> list[float]:
    """The losses of a part's training, which stops before a step if told to."""
    losses: list[float] = []
    inner = part.loss

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        if step == stop:
            raise KeyboardInterrupt
        found = inner(step, generator)
        losses.append(found["loss"].item())
        return found

    part.loss = loss
    return losses


@pytest.mark.parametrize("fine", [False, True])
def test_a_short_training_lowers_the_loss(make: Any, tmp_path: Path, fine: bool) -> None:
    part = make(tmp_path, 60, fine=fine)
    losses = _watched(part)
    _fit(part, tmp_path, 60)
    assert len(losses) == 60
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_a_killed_training_goes_on_to_the_same_bits(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(step=100)
    monkeypatch.setattr(fitting, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))  # each step is a minute: saves
    straight = _fit(make(tmp_path / "straight", 4), tmp_path / "straight", 4)
    killed = make(tmp_path / "killed", 4)
    _watched(killed, stop=2)
    with pytest.raises(KeyboardInterrupt):
        _fit(killed, tmp_path / "killed", 4)
    resumed = _fit(make(tmp_path / "killed", 4), tmp_path / "killed", 4)
    for (name, a), b in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_it_learns_on_the_generators_scenes_alone(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Description] = []
    caption = captions.caption

    def spy(description: Description, rng: Any) -> str:
        said.append(description)
        return caption(description, rng)

    monkeypatch.setattr(captions, "caption", spy)
    part = make(tmp_path, 10)
    for step in range(10):
        part.loss(step, torch.Generator().manual_seed(step))
    known = {str(description) for description, _ in zip(*training._stored_latents(_settings(tmp_path), None), strict=True)}  # type: ignore[arg-type]
    assert len(said) > 512
    assert {str(description) for description in said[512:]} <= known
    for thing in (thing for description in said for thing in description.things):
        assert thing.shape in COMMON_SHAPES
        assert thing.colour is not None
        assert thing.shape != captions._unseen_shape(thing.colour)


def test_it_ships_as_a_pipeline_of_stable_diffusion_3(
    generator: tuple[Any, Any], clip: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(4)
    network = _mixed(flow.build_transformer(32, 2, 2))
    monkeypatch.setattr(networks, "load_generator", lambda: generator)
    monkeypatch.setattr(networks, "load_clip", lambda name: clip)
    for module in (shipping, exam):
        monkeypatch.setattr(module, "WEIGHTS", tmp_path)
    shipping.ship_flow(network)
    pipe = exam.load_flow()
    assert type(pipe).__name__ == "StableDiffusion3Pipeline"
    assert {p.dtype for p in pipe.transformer.parameters()} == {torch.float32}
    assert pipe.scheduler.config.shift == 3
    assert pipe.vae.config.scaling_factor == training.LATENT_SCALE

    sequence, _, pooled, _ = pipe.encode_prompt("a red circle to the left of a blue star", None, None)
    expected = flow.encode((flow.first_text_encoder(generator[1]), flow.second_text_encoder(clip)), _ids()[:1])
    assert sequence.shape == (1, networks.MAX_TOKENS + flow.ZEROS, 256)
    torch.testing.assert_close(sequence[:, : networks.MAX_TOKENS], expected[0][:, :-1], atol=0.01, rtol=0.01)
    assert (sequence[:, networks.MAX_TOKENS :] == 0).all()
    torch.testing.assert_close(pooled, expected[1], atol=0.01, rtol=0.01)

    noise = [torch.Generator().manual_seed(i) for i in range(2)]
    images = pipe(["a red circle", "a blue star"], generator=noise, num_inference_steps=2, output_type="pt").images
    assert images.shape == (2, 3, 64, 64)
    assert images.isfinite().all()
    figures = exam.examine_generator(
        pipe, networks.load_classifier(), name="flow", numbers={"single": 2}, **{**exam.SAMPLING["flow"], "steps": 2}
    )
    assert set(figures) == {"flow/single"}

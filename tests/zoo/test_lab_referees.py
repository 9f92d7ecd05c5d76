"""The lab's BLIP-2 and question answering behind the zoo's protocols, with random weights."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from guidedgen.basics.errors import UsageError
from guidedgen.lab import networks, referees
from guidedgen.zoo import blip2, vqa
from guidedgen.zoo.blip2 import LabBlip2
from guidedgen.zoo.vqa import LabVqa

TEXTS = ("a red circle", "a blue square to the left of a green triangle on a gray background")


@pytest.fixture
def referees_lab(random_lab: Path) -> Iterator[Path]:
    from safetensors.torch import save_file

    caches = (referees.load_blip2, referees.load_vqa, blip2._load_lab, vqa._load_lab)
    words = networks.load_tokenizer().get_vocab_size()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = {"blip2": referees.build_blip2(words), "vqa": referees.build_vqa(words)}
        for name, network in built.items():
            for part, parameter in network.named_parameters():
                if "patch_embedding" not in part:
                    torch.nn.init.normal_(parameter, std=0.1)
            state = {key: value.clone().contiguous() for key, value in network.state_dict().items()}
            save_file(state, random_lab / f"{name}.safetensors")
    for cached in caches:
        cached.cache_clear()
    yield random_lab
    for cached in caches:
        cached.cache_clear()


def noise(b: int = 2, side: int = 64) -> torch.Tensor:
    return torch.rand(b, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_blip2(referees_lab: Path):
    matcher, tokenizer = LabBlip2(), networks.load_tokenizer()
    assert matcher.network is LabBlip2().network
    with torch.no_grad():
        matching, caption = matcher(noise(), TEXTS)
        for i, text in enumerate(TEXTS):
            ids = torch.tensor([tokenizer.encode(text).ids])  # no padding
            own = matcher.network.network(
                pixel_values=2 * noise()[i : i + 1] - 1,
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                use_image_text_matching_head=True,
            ).logits_per_image
            torch.testing.assert_close(matching[i], F.cross_entropy(own, torch.tensor([1])), atol=1e-4, rtol=1e-4)
            seen = matcher.network.see(2 * noise()[i : i + 1] - 1)
            alone = matcher.network.caption(seen, ids, torch.ones_like(ids), referees.special(tokenizer)["[DEC]"])
            torch.testing.assert_close(caption[i], alone[0], atol=1e-4, rtol=1e-4)
    x = noise(2, 96).requires_grad_()
    for which in range(2):
        [gradient] = torch.autograd.grad(matcher(x, TEXTS)[which].sum(), x)
        assert gradient.abs().amax((1, 2, 3)).min() > 0


def test_vqa(referees_lab: Path):
    asker, tokenizer = LabVqa(), networks.load_tokenizer()
    special, questions = referees.special(tokenizer), [f"{text}?" for text in TEXTS]
    caught: list[torch.Tensor] = []
    hook = asker.network.text_decoder.register_forward_hook(lambda module, inputs, output: caught.append(output.logits[0, 0]))
    with torch.no_grad():
        for i, question in enumerate(questions):
            ids = torch.tensor([[special["[ENC]"], *tokenizer.encode(question).ids[1:]]])
            asker.network(
                input_ids=ids, pixel_values=2 * noise()[i : i + 1] - 1, decoder_input_ids=torch.tensor([[special["[DEC]"]]])
            )
        hook.remove()
        odds = asker(noise(), questions)
    expected = torch.stack([logits[special["yes"]] - logits[special["no"]] for logits in caught])
    torch.testing.assert_close(odds, expected, atol=1e-4, rtol=1e-4)
    x = noise(2, 96).requires_grad_()
    [gradient] = torch.autograd.grad(asker(x, questions).sum(), x)
    assert asker.differentiable and gradient.abs().amax((1, 2, 3)).min() > 0


def test_missing_weights_are_noticed_at_once(random_lab: Path):
    for part, build in {"blip2": LabBlip2, "vqa": LabVqa}.items():
        with pytest.raises(UsageError, match=f"make it with: python scripts/train_lab.py --parts {part}$"):
            build()

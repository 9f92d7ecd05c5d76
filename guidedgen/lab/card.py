"""The model card of the shipped weights: what they were trained on and how, and the exam's figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import nn

from guidedgen.lab import exam
from guidedgen.lab.fitting import Part, Settings

_CARD = """\
# The lab's networks

Trained from scratch on rendered scenes by `scripts/train_lab.py`; nothing in them comes from other models or from photographs.
Good for showing, testing and measuring guidance methods in seconds on a CPU; of no other use.

## Data

Scenes of one to three objects, 64 x 64 px, drawn by `guidedgen.lab.world` and `render` while training: 8 colours, 10 shapes,
4 textures, 3 sizes, 3 backgrounds, 4 relations. Captions leave things out as people do (`captions.caption`).

| split | what is in it | who sees it |
| --- | --- | --- |
| generator | 8 common shapes without one colour each: 56 of 64 colour-shape combinations | generator, flow, turbo |
| world | everything, with sparkle and crescent and the 8 other combinations | all but these three |
| unseen | objects of the 8 combinations alone | no network in training: the family "unseen" of the exam |

Figures below are on scenes from random streams that training does not use. `clip-guide` may guide; `clip-judge`, of another
architecture and other initial weights, only judges. The aesthetic head is trained on noisy ratings of `taste`.
`clip-preference` is `clip-guide`, trained further as PickScore is: on choices between two pictures by a simulated rater, who
looks mostly for what the prompt asks for and a little for `taste` (`guidedgen.lab.preference`), with half of the contrastive
loss added to it. `blip2` and `vqa` are BLIP-2's Q-Former and BLIP's question answering on transformers' classes
(`guidedgen.lab.referees`), trained on true and false statements about scenes (`guidedgen.lab.statements`); they share no
weights with each other or with any other network, so that each may judge what another one has guided. `blip2`, under which
pictures are optimised directly, is at the end trained against adversarial pictures ("hardened", `guidedgen.lab.hardening`):
before, it accepted noise. `vqa` is not.

`flow` is a rectified flow in Stable Diffusion 3's classes (`guidedgen.lab.flow`): the transformer is trained, between the
lab's autoencoder and two frozen text encoders, the generator's and `clip-guide`'s text tower, without T5: first with a
token for each patch of 2 x 2 latent pixels (`flow-coarse`, not shipped), then with one for each pixel. At noise levels from
0.05 to 0.9 it learns the velocity that the generator's noise prediction implies, at the others the data's. The text tower
has read captions of the whole world, as SD3's CLIPs have; pictures the transformer has seen of the generator's split alone.

`turbo` is the generator's UNet, trained to predict in one call where the generator's guided chain ends (`guidedgen.lab.turbo`):
from pure noise, from points on the way, and from its own predictions noised anew, as the sampler of latent consistency models
has them. The ends are computed while training; it sees no pictures. Text encoder and autoencoder are the generator's.

## Networks and training

AdamW (0.9, 0.99), gradients clipped to norm 1, warm-up, constant rate, linear decay over the last 40 % of the steps; shipped is
the running average of the weights, in fp16. {settings} Seconds are of one CPU thread of a machine that did other work as well.
Each part is a function of its seed on one machine and one version of torch. What was shipped first differs in two ways from what
a new training gives: it was stopped and continued with more steps, and the generator's tokens were renumbered afterwards.
Its losses were taken from the log and its seconds from the clock, except the classifier's and the preference CLIP's, which the
loop measured. `blip2` and `vqa` were stopped and continued too; up to step 4200 without the loss of positions, and with fewer
false relations and backgrounds among the statements. `flow` and `turbo` were stopped and continued with other numbers of steps,
and so with other learning rates: `flow-coarse` was trained for 24,000 steps to the end of the decay, and four times continued.
`flow` began at its weights in fp16. The
learning rate of `blip2` had decayed to zero at step 6000; from then on it was hardened. The preference CLIP's loss is that of
one batch of noisy choices; its floor, the noise's, is about 0.4.

| part | network | parameters | steps | learning rate | weight decay | warm-up | average | last loss | seconds |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
{parts}

## Figures

`python scripts/train_lab.py --evaluate` prints these. Generator: diffusers' StableDiffusionPipeline, DDIM, 50 steps, guidance
scale 5; flow: StableDiffusion3Pipeline, {flow}; turbo: LCM, {turbo}. All judged by the scene classifier: exactly the
objects asked for, none more, in colour and shape, and whatever else the prompt says. The families with an upper bar are the hard
ones, for guidance to improve; the rates are those without guidance.
"texture" are two things of one colour that differ in texture; "unseen" three things, each a combination the generator never saw.
Two textured things of different colours are drawn right in 82 % and two unseen ones in 91 % of 96 pictures each.

"choice" is how often the preference CLIP prefers the picture that the rater's formula prefers, in pairs that differ in what the
prompt asks for ("prompt") or in taste alone; "guide's" is the same by the guide's cosine. Figures of
`blip2` are how often a caption does better than the same with one thing false: by matching, where an attribute of a thing, the
relation or the background was changed; by captioning; and by the sum of both, which is the reward. Matching alone is nearly blind
to relations. "match" is how often it is right about each caption alone, "attacked" where the picture was changed, by an L2 norm
of 0.5, to make it err: 69 % before it was hardened. "answer" are questions to `vqa`, half of them to be answered with no; where
they ask for a relation or a background, it is false in half of those.

| figure | value | bar | |
| --- | --- | --- | --- |
{figures}
"""


def card(results: Mapping[str, float], parts: Sequence[Part], settings: Settings, spent: Mapping[str, tuple[float, float]]) -> str:
    """The text of the model card: figures as `exam.main` returns them, the parts as trained, their seconds and last losses."""
    marks = {key: "pass" if kept else "miss" for key, kept in exam.passed(results).items()}
    figures = [f"| {key} | {exam.number(key, value)} | {exam.bar(key)} | {marks.get(key, '')} |" for key, value in results.items()]
    rows = []
    for part in parts:
        kinds = part.network.values() if isinstance(part.network, nn.ModuleDict) else [part.network]
        network = " + ".join(type(module).__name__ for module in kinds)
        parameters = sum(p.numel() for p in part.network.parameters())
        steps = max(1, round(part.steps * settings.scale))
        seconds, loss = (f"{value:.4g}" if math.isfinite(value) else "" for value in spent[part.name])
        rows.append(
            f"| {part.name} | {network} | {parameters / 1e6:.2f} M | {steps} | {part.lr:g} | {part.weight_decay:g} "
            f"| {part.warm_up} | {part.average:g} | {loss} | {seconds} |"
        )
    how = f"Seed {settings.seed}, {'bf16' if settings.bf16 else 'fp32'} on {settings.device}, scale {settings.scale:g}."
    sampling = {
        name: "{steps} steps, guidance scale {guidance_scale:g}".format(**exam.SAMPLING[name]) for name in ("flow", "turbo")
    }
    return _CARD.format(settings=how, **sampling, parts="\n".join(rows), figures="\n".join(figures))

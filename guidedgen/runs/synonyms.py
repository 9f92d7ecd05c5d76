"""Other words for options, of other programs and papers: a key that does not exist is answered by one that does."""

from __future__ import annotations

from collections.abc import Iterable

# Words for one thing, those first that are guidedgen's.
_GROUPS = (
    "num_particles num_candidates num_noises count n particles candidates copies num_copies streams num_streams num_beams best_of",
    "num_steps steps num_inference_steps inference_steps timesteps sampling_steps ddim_steps",
    "guidance_scale guidance cfg cfg_scale guidance_weight classifier_free_guidance w",
    "strength kl_weight temperature scale weight lambda rho alpha kl_coeff grad_scale reward_scale",
    "lr learning_rate step_size",
    "num_updates num_iterations iterations updates epochs optim_steps opt_steps num_optimization_steps",
    "num_repeats repeats recurrence recurrences num_recurrences time_travel travel_length",
    "block_size interval block frequency freq resample_frequency",
    "samples_per_prompt num_samples num_images samples images images_per_prompt num_images_per_prompt",
    "prompts prompt text caption captions",
    "batch_size batch bs",
    "path checkpoint ckpt weights pretrained model_path model_id pretrained_model_name_or_path",
    "negative_prompt negative neg neg_prompt",
    "size height width resolution image_size",
    "outputs output out out_dir output_dir save_dir results",
    "device gpu cuda",
    "dtype precision fp16 bf16 half mixed_precision",
    "scheduler sampler solver",
    "dataset data prompts_file",
    "method algorithm algo alg guider",
    "reward objective scorer reward_fn reward_model",
    "metrics metric judges judge",
    "experiment table config preset",
    "tracker wandb logger",
)
_MEANT = [group.split() for group in _GROUPS]
_NODES = ("method", "scheduler", "model", "dataset", "reward")


def meant(word: str, known: Iterable[str]) -> str | None:
    """The known key whose last part is another word for the last part of this one: of the same node if there is one, else the one
    that comes first above, at the top or in the first of some nodes.
    """
    node, _, last = word.lower().rpartition(".")
    ranks = {name: rank for group in _MEANT if last in group for rank, name in enumerate(group)}

    def order(name: str) -> tuple[bool, int, int, int, str]:
        root, inside = name.split(".")[0], bool(node) and name.startswith(f"{node}.")
        place = _NODES.index(root) if root in _NODES else len(_NODES)
        return not inside, ranks[name.rpartition(".")[2]], name.count("."), place, name

    return min((name for name in known if name.rpartition(".")[2] in ranks and name != word), key=order, default=None)

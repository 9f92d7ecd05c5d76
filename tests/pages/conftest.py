"""Studies written as runs write them, in no time: coloured squares for pictures, figures made up."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from guidedgen.basics.tasks import Sample, Task
from guidedgen.runs.store import Record, RunFolder

MakeRun = Callable[..., Path]
PROMPTS = {
    "circle": "a red circle",
    "square": "a blue square and a red star",
    "hostile": "<script>document.hacked = 1</script><img src=x onerror='document.hacked = 1'> \"&amp;\" 100 % $x_1^2$ \\ ~{#}",
}


def picture(colour: str, side: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def written(label: str, reward: float, base: float, nfe: int, count: int, guided: bool) -> dict[str, Any]:
    """A run's metrics.json, of a reward that shares its network with the guidance and a score that does not."""
    against = {"base": base, "win_rate": 0.875} if guided else {}
    scores = {
        "aesthetic": {"value": reward, "low": reward - 0.25, "high": reward + 0.5, "prompts": 3, "shares_guide": guided, **against},
        "clip_score": {"value": 0.75, "low": 0.7, "high": 0.8, "prompts": 3, "shares_guide": False, **({"base": 0.72, "win_rate": 0.5} if guided else {})},
    }  # fmt: skip
    cost = {"nfe": nfe, "nfe_backward": 0, "decodes": 1, "reward_calls": 0, "seconds": nfe / 100, "peak_memory_mib": 512.0}
    measured = {
        "base_cost": {**cost, "nfe": 50, "seconds": 0.5},
        "compared": [count, count],
        "distances": {
            "fid": {"value": 10 * (reward - base), "features": "inception", "shares_guide": False},
            "cmmd": {"value": reward - base, "features": "clip", "shares_guide": False},
        },
    }
    metrics = {
        "title": f"{label}-folder",
        "label": label,
        "reward": "aesthetic",
        "samples": count,
        "prompts": len(PROMPTS),
        "blurred": 0,
    }
    return {**metrics, "scores": scores, "cost": cost, **(measured if guided else {})}


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes a run into the study tmp_path/study and returns its folder."""

    def make(
        name: str, *, method: str = "code", reward: float = 5.0, base: float = 4.0, nfe: int = 100, seeds: Sequence[int] = (0,),
        prompts: Mapping[str, str] = PROMPTS, png: bytes | None = None, label: str = "", judged: bool = True, done: bool = True,
        options: Mapping[str, Any] | None = None, num_steps: int = 25, trace: Sequence[Mapping[str, Any]] = (),
        failed: Mapping[str, str] | None = None, guide: Mapping[str, Any] | None = None, command: Sequence[str] = (), commit: str = "0" * 40, reference: str = "base", **metrics: Any,
    ) -> Path:  # fmt: skip
        run, failed = RunFolder(tmp_path / "study" / name), failed or {}
        config = {
            "seed": 0, "samples_per_prompt": len(seeds), "reference": reference, "study": "study",
            "method": {"_target_": f"guidedgen.methods.{method}.Method", **(options or {})},
            "reward": {"_target_": "guidedgen.rewards.aesthetic.Aesthetic", **(guide or {})}, "model": {"name": "lab"}, "scheduler": {"num_steps": num_steps},
        }  # fmt: skip
        run.open(
            OmegaConf.to_yaml(OmegaConf.create(config)), {"command": ["run.py", *command], "commit": commit, "python": "3.11.7"}
        )
        samples = [Sample(task=Task(id=task, prompt=prompt), seed=seed) for task, prompt in prompts.items() for seed in seeds]
        for sample in samples:
            reason = failed.get(sample.name)
            record = Record(
                task=sample.task.id, prompt=sample.task.prompt, category="", seed=sample.seed, image="" if reason else sample.image,
                scores={} if reason else {"aesthetic": reward, "clip_score": 0.75}, nfe=nfe, nfe_backward=0, decodes=1, reward_calls=0,
                seconds=nfe / 100, peak_memory_mib=512.0, failed=reason,
            )  # fmt: skip
            if reason:
                run.fail(record)
            else:
                run.save(sample, png or picture("red"), record, trace)
        if judged:
            count = len(samples) - len(failed)
            run.write_json("metrics.json", written(label or name, reward, base, nfe, count, method != "base") | metrics)
        if done:
            run.finish()
        else:
            run.close()
        return run.path

    return make


@pytest.fixture
def study(make_run: MakeRun, tmp_path: Path) -> Path:
    """Three guided runs and the unguided one that was made for them."""
    make_run("base", method="base", reward=4.0, nfe=50, png=picture("grey"), judged=False)
    make_run("code", reward=5.0, nfe=100, png=picture("green"), command=["method=code", "dataset.prompt=\"it's\""], published={
        "source": "a thesis, Table 1", "reward": 5.59, "minutes": 2,
    })  # fmt: skip
    make_run("codex", reward=6.5, nfe=200, png=picture("blue"))
    make_run("mpgd", reward=4.5, nfe=150, png=picture("pink"))
    return tmp_path / "study"

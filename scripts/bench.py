"""Measures what things cost here.

python scripts/bench.py gradients                                   every engine, on the lab: memory and seconds by number of steps
python scripts/bench.py gradients --model PATH --device cuda --dtype bfloat16 --steps 50
python scripts/bench.py gradients --engines checkpoint --memory-gb 2        and checkpointing that may keep so much
python scripts/bench.py sampling method=base model=sdxl device=cuda         a run's images per second, next to diffusers' pipeline
python scripts/bench.py law                                         how near samplers come to a law that is known, on the CPU

gradients: one value and gradient of a whole chain of T steps, guided, by its first latent. Memory is the most that is held at
once, weights aside: on a CPU the bytes of all tensors, on a GPU what torch has allocated for them. Latents are float64, whatever
the network is. The cosine is to the gradient of the numbers that were computed: the adjoint's is of the continuous flow.

sampling: what a run with these options does between prompts and pictures, which are not stored or judged. Seconds are the
process's own on a CPU, all threads together, and the clock's on a GPU. With method=base the pipeline that diffusers loads from the
same folder takes turns with it, on the same prompts, size, steps, guidance and dtype; the fastest turn of each counts.

law: moments of what the samplers return, with a denoiser that is exact, and of the law that they aim at, the model's times
exp(reward / kl_weight), by the number of particles N (see guidedgen.studies.law and docs/law.md).
"""

import argparse
import dataclasses
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Spinning OpenMP threads make a shared machine several times slower; the variable must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from guidedgen.basics.errors import UsageError
from guidedgen.basics.tasks import Task
from guidedgen.cli import terminal
from guidedgen.gradients import GradientEngine

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from guidedgen.models.stable_diffusion import StableDiffusion
    from guidedgen.process.chains import Chain
    from guidedgen.runs.job import Job

ENGINES = ("backprop", "checkpoint", "reversible", "adjoint")
PROCESSES = ("ddim", "edict")
MIB = 2**20


def measure(compute: Callable[[], object], device: str) -> tuple[float, int]:
    """Seconds, and the most bytes held beyond those that were there before."""
    import torch

    from guidedgen.gradients.memory import Alive

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before, start = torch.cuda.memory_allocated(device), time.perf_counter()
        compute()
        torch.cuda.synchronize(device)
        return time.perf_counter() - start, torch.cuda.max_memory_allocated(device) - before
    start = time.perf_counter()
    compute()
    seconds = time.perf_counter() - start
    with Alive() as alive:  # apart, because watching takes time
        compute()
    return seconds, alive.peak


def engines(names: list[str], process: str, memory_gb: float) -> Iterator[tuple[str, GradientEngine]]:
    """Those of the names that can differentiate a process."""
    from guidedgen.gradients.adjoint import Adjoint
    from guidedgen.gradients.backprop import Backprop
    from guidedgen.gradients.checkpoint import Checkpoint
    from guidedgen.gradients.reversible import Reversible

    if "backprop" in names:
        yield "backprop", Backprop()
    if "checkpoint" in names:
        yield "checkpoint", Checkpoint()
        if memory_gb:
            yield f"checkpoint, {memory_gb:g} GB", Checkpoint(memory_gb=memory_gb)
    if "reversible" in names and process == "edict":
        yield "reversible", Reversible()
    if "adjoint" in names and process == "ddim":
        yield "adjoint", Adjoint()


def make_chain(process: str, model: "StableDiffusion", steps: int, samples: int) -> "Chain":
    from guidedgen.process.chains import EdictChain
    from guidedgen.process.flow import FlowChain
    from guidedgen.process.schedulers import Ddim

    grid = Ddim(num_steps=steps).grid(model.schedule)
    denoise = model.denoiser([Task(id=str(i), prompt="a red circle") for i in range(samples)])
    if process == "edict":
        return EdictChain(denoise=denoise, grid=grid)
    return FlowChain(denoise=denoise, grid=grid, schedule=model.schedule)


def gradients(arguments: argparse.Namespace) -> None:
    """Prints a table of engines and numbers of steps, in Markdown; meanwhile a terminal says what is measured."""
    import torch
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from guidedgen.gradients.checkpoint import Checkpoint
    from guidedgen.models.stable_diffusion import StableDiffusion

    model = StableDiffusion(
        path=arguments.model, name="bench", device=arguments.device, dtype=arguments.dtype,
        guidance_scale=arguments.guidance_scale, batch_size=arguments.samples,
    )  # fmt: skip
    x = torch.randn(arguments.samples, 1, *model.latent_shape, dtype=torch.float64, device=arguments.device)

    def gradient(engine: GradientEngine, chain: "Chain") -> "Tensor":
        model.ledger.nfe = model.ledger.nfe_backward = 0
        x_t = x.clone().requires_grad_()
        state = engine(chain, chain.start(x_t))
        (found,) = torch.autograd.grad(sum(latent.square().mean() for latent in state), x_t)
        return found

    table = Table("process", "engine", box=box.MARKDOWN, title=f"{arguments.model}, {arguments.dtype} on {arguments.device}")
    for column in ("T", "peak MiB", "seconds", "rows", "backward", "cosine"):
        table.add_column(column, justify="right")
    exact = Checkpoint()
    watched = Console(stderr=True)
    for process in arguments.processes:
        for name, engine in engines(arguments.engines, process, arguments.memory_gb):
            gradient(engine, make_chain(process, model, 1, arguments.samples))  # the first time is slower
            for steps in arguments.steps:
                chain = make_chain(process, model, steps, arguments.samples)
                row = [process, name, str(steps)]
                with watched.status(" ".join(row)):
                    try:
                        seconds, peak = measure(functools.partial(gradient, engine, chain), arguments.device)
                    except torch.OutOfMemoryError:
                        table.add_row(*row, "more", "", "", "", "")
                        torch.cuda.empty_cache()
                        continue
                rows = (str(model.ledger.nfe), str(model.ledger.nfe_backward))
                pair = [gradient(each, chain).flatten(1) for each in (engine, exact)]
                likeness = torch.nn.functional.cosine_similarity(*pair).mean().item()
                table.add_row(*row, f"{peak / MIB:.2f}", f"{seconds:.2f}", *rows, f"{likeness:.3f}")
    show(table)


def show(table: "Table") -> None:
    """Prints a table in Markdown, where no cell may be broken into lines: as wide as it has to be, whatever the terminal."""
    from rich.console import Console

    console = Console()
    wanted = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    Console(width=max(console.width, wanted)).print(table)


def make_pictures(job: "Job") -> None:
    """The job's samples as one batch, from their prompts to bytes, as a run makes them."""
    import torch

    from guidedgen.basics import images
    from guidedgen.runs import sampling as runs

    job.model.prompts.forget()  # they are read anew, as the pipeline does
    with torch.no_grad():
        x_0 = job.method(runs.problem(job, job.samples, job.base))
        for rows in x_0.split(job.cfg.batch_size):
            images.to_bytes(job.model.decode(rows))


def pipeline_of(job: "Job") -> Callable[[], object]:
    """diffusers' own pipeline of the job's folder, which makes the same number of pictures of the same prompts."""
    import torch
    from diffusers import DiffusionPipeline

    model, dtype = job.model, getattr(torch, job.model.dtype)
    parts = {"safety_checker": None, "requires_safety_checker": False} if type(model).__name__ == "StableDiffusion" else {}
    if getattr(model, "t5", True) is False:
        parts = {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = DiffusionPipeline.from_pretrained(str(model.folder), dtype=dtype, local_files_only=True, **parts)
    pipeline.to(model.device).set_progress_bar_config(disable=True)
    _, height, width = model.latent_shape
    factor = pipeline.vae_scale_factor
    options = {"guidance_scale": model.guidance_scale}
    if (embedded := getattr(model, "embedded_guidance", None)) is not None:
        options = {"guidance_scale": embedded}
    if type(model).__name__ == "Flux" and model.guidance_scale != 1:
        options |= {"true_cfg_scale": model.guidance_scale}
    prompts = [sample.task.prompt for sample in job.samples]
    return lambda: pipeline(
        prompts, num_inference_steps=len(job.grid) - 1, height=height * factor, width=width * factor, output_type="np", **options
    )


def sampling(arguments: argparse.Namespace) -> None:
    """Prints images per second and, on a GPU, the peak of memory, in Markdown."""
    import torch
    from rich import box
    from rich.table import Table

    from guidedgen.basics import cost
    from guidedgen.runs import composition, preparation

    with tempfile.TemporaryDirectory() as folder:
        ours = [f"outputs={folder}", "tracker=none", "metrics=none", f"batch_size={arguments.samples}"]
        job = preparation.prepare(composition.composed([*arguments.overrides, *ours]))
    if len(job.samples) < arguments.samples:
        raise UsageError(f"--samples {arguments.samples}: the data set has {len(job.samples)}; use samples_per_prompt=")
    job = dataclasses.replace(job, samples=job.samples[: arguments.samples])
    job.model.load()
    device = torch.device(job.cfg.device)
    compared: dict[str, Callable[[], object]] = {"guidedgen": functools.partial(make_pictures, job)}
    if job.method_name == "base":
        compared["diffusers"] = pipeline_of(job)

    def timed(compute: Callable[[], object]) -> tuple[float, float]:
        cost.reset_peak_memory(device)
        cost.wait_for(device)
        clock = time.perf_counter if device.type == "cuda" else time.process_time
        start = clock()
        compute()
        cost.wait_for(device)
        return clock() - start, cost.peak_memory_mib(device)

    for compute in compared.values():
        compute()  # the first time is slower
    turns = [{name: timed(compute) for name, compute in compared.items()} for _ in range(arguments.repeats)]
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    table = Table("", box=box.MARKDOWN, title=f"{job.cfg.model.name}, {job.method_name}, {job.cfg.dtype} on {where}")
    for column in ("images/s", "peak MiB", "of diffusers'"):
        table.add_column(column, justify="right")
    fastest = {name: min(turn[name][0] for turn in turns) for name in compared}  # what else a machine does only adds to it
    for name in compared:
        speed = arguments.samples / fastest[name]
        peak = f"{max(turn[name][1] for turn in turns):.0f}" if device.type == "cuda" else ""
        ratio = f"{fastest['diffusers'] / fastest[name]:.3f}" if "diffusers" in compared else ""
        table.add_row(name, f"{speed:.4g}", peak, ratio)
    show(table)


def law(arguments: argparse.Namespace) -> None:
    """Prints both tables in Markdown."""
    from guidedgen.studies import law as laws

    print(laws.normal_table(arguments.particles, arguments.runs), end="\n\n")
    print(laws.mixture_table(32, max(200, arguments.runs // 4)))


def check(arguments: argparse.Namespace) -> None:
    """Settles the device. Raises UsageError for numbers that cannot be, before anything is loaded."""
    from guidedgen.runs import options

    bounds = {
        "samples": (1, options.SAMPLES),
        "threads": (1, 1024),
        "memory_gb": (0, 1e6),
        "repeats": (1, 1000),
        "runs": (200, 10**6),
    }
    for name, (least, most) in bounds.items():
        value = getattr(arguments, name, None)
        if value is not None and not least <= value <= most:
            raise UsageError(f"--{name.replace('_', '-')} {value}: must be from {least:g} to {most:g}")
    if arguments.measure is law and not all(1 <= n <= 4096 for n in arguments.particles):
        raise UsageError(f"--particles {' '.join(map(str, arguments.particles))}: must be from 1 to 4096")
    if arguments.measure is gradients:
        arguments.device = options.real_device(arguments.device)
        for steps in arguments.steps:
            if not 1 <= steps <= 1000:
                raise UsageError(f"--steps {steps}: must be from 1 to 1000, the steps that the model is trained for")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(required=True, metavar="gradients|sampling|law")

    engine = what.add_parser("gradients", help="every engine: memory, seconds and cosine to the exact gradient by number of steps")
    engine.set_defaults(measure=gradients)
    engine.add_argument("--model", default="lab", help="a Stable Diffusion folder, or lab (default)")
    engine.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    engine.add_argument("--dtype", default="float32", help="of the network (default: float32)")
    engine.add_argument("--steps", nargs="+", type=int, default=[10, 20, 50, 100], metavar="T")
    engine.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    engine.add_argument("--processes", nargs="+", choices=PROCESSES, default=list(PROCESSES))
    engine.add_argument("--samples", type=int, default=1, help="pictures at once (default: 1)")
    engine.add_argument("--guidance-scale", type=float, default=7.5, help="of classifier-free guidance (default: 7.5)")
    engine.add_argument("--memory-gb", type=float, default=0.0, help="adds checkpointing that may keep so many gigabytes")
    engine.add_argument("--threads", type=int, help="CPU threads (default: all)")

    run = what.add_parser("sampling", help="a run's images per second")
    run.set_defaults(measure=sampling)
    run.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as of run.py")
    run.add_argument("--samples", type=int, default=8, help="pictures at once (default: 8)")
    run.add_argument("--repeats", type=int, default=5, help="how often it is measured (default: 5)")
    run.add_argument("--threads", type=int, help="CPU threads (default: all)")

    known = what.add_parser("law", help="how near samplers come to a law that is known")
    known.set_defaults(measure=law)
    known.add_argument("--particles", nargs="+", type=int, default=[4, 32, 256], metavar="N")
    known.add_argument("--runs", type=int, default=20_000, help="of each sampler; fewer where N is above 20 (default: 20000)")
    known.add_argument("--threads", type=int, help="CPU threads (default: all)")

    arguments = parser.parse_args()
    check(arguments)
    if arguments.threads is not None:
        import torch

        torch.set_num_threads(arguments.threads)
    arguments.measure(arguments)


if __name__ == "__main__":
    terminal.run(main)

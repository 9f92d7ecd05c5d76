"""Mirrors a finished run to Weights & Biases. All results are in the run's folder, so a lost mirror loses nothing."""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from guidedgen.basics.animation import animated
from guidedgen.basics.errors import BadValue, printable
from guidedgen.runs import inside
from guidedgen.runs.store import Record


class Tracker(Protocol):
    """Where runs are mirrored."""

    def log(
        self,
        *,
        folder: Path,
        run_id: str,
        name: str,
        config: Mapping[str, Any],
        records: Sequence[Record],
        metrics: Mapping[str, Any],
    ) -> None:
        """Mirrors one finished run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wandb:
    """The real client. Offline by default; it never asks for a key, and a failure of it is a warning."""

    project: str = "guidedgen"
    entity: str | None = None
    mode: Literal["offline", "online", "disabled"] = "offline"

    def __post_init__(self) -> None:
        if not self.project or any(c in self.project for c in "/\\#?%:"):
            raise BadValue("project", self.project, "must not be empty or hold any of / \\ # ? % :")

    def log(
        self,
        *,
        folder: Path,
        run_id: str,
        name: str,
        config: Mapping[str, Any],
        records: Sequence[Record],
        metrics: Mapping[str, Any],
    ) -> None:
        """Logs config, a table of images with prompt, seed, scores and sheets, films as animations, and the metrics as summary.
        Runs are grouped by study.

        The id is the run's hash, so that a run that is judged again goes on as the same one; of an agent of W&B's sweeps it is the
        agent's.
        """
        if self.mode == "disabled":
            return
        try:
            self._log(folder, run_id, name, config, records, metrics)
        except Exception as error:  # whatever the client or its server does must not cost the run
            reason = printable(" ".join(str(error).split()))  # its own words may be several lines
            warnings.warn(f"wandb: {reason}; the run is whole in {folder}", RuntimeWarning, stacklevel=2)

    def _log(
        self, folder: Path, run_id: str, name: str, config: Mapping[str, Any], records: Sequence[Record], metrics: Mapping[str, Any]
    ) -> None:
        import wandb

        inside.check_links(folder, "wandb")
        # The images of a table are staged here until they are synced; the default is in the user's home.
        os.environ["WANDB_DATA_DIR"] = str(folder / "wandb")
        settings = wandb.Settings(silent=True, init_timeout=30, console="off", disable_git=True, x_disable_stats=True)
        with wandb.init(
            project=self.project, entity=self.entity, name=name, group=folder.absolute().parent.name,
            id=None if "WANDB_SWEEP_ID" in os.environ else run_id, resume="allow", mode=self._mode(), dir=str(folder),
            reinit="finish_previous", config=dict(config), settings=settings,
        ) as run:  # fmt: skip
            scores = sorted({score for record in records for score in record.scores})
            kinds = list(inside.names(folder, "sheets"))
            table = wandb.Table(columns=["image", "prompt", "seed", *scores, *kinds])
            for record in records:
                values = [record.scores.get(score) for score in scores]
                sheets = [folder / "sheets" / kind / f"{record.name}.png" for kind in kinds]
                shown = [wandb.Image(str(sheet)) if sheet.exists() else None for sheet in sheets]
                table.add_data(wandb.Image(str(folder / record.image)), record.prompt, record.seed, *values, *shown)
            run.log({"samples": table})
            if "film" in kinds:
                _log_films(run, folder, records)
            run.summary.update(dict(_flat(metrics)))

    def _mode(self) -> Literal["offline", "online"]:
        """Online only where it cannot end in a prompt for a key."""
        if self.mode == "online" and not _has_key():
            print("wandb: tracker.mode=online, but no key is set (wandb login, or WANDB_API_KEY); going offline", file=sys.stderr)
            return "offline"
        return "online" if self.mode == "online" else "offline"


def _log_films(run: Any, folder: Path, records: Sequence[Record]) -> None:
    """Logs the film of each sample that has one as an animation."""
    import wandb
    from PIL import Image

    with tempfile.TemporaryDirectory() as staged:  # the client copies what it logs
        films = {}
        for record in records:
            strip = folder / "sheets" / "film" / f"{record.name}.png"
            if strip.exists():
                moving = Path(staged) / f"{record.name}.gif"
                with Image.open(strip) as pictures, Image.open(folder / record.image) as picture:
                    moving.write_bytes(animated(pictures, picture.width))
                films[f"film/{record.name}"] = wandb.Video(str(moving), caption=record.prompt, format="gif")
        run.log(films)


def _has_key() -> bool:
    import wandb
    from wandb.errors import AuthenticationError

    wandb.setup(wandb.Settings(silent=True))
    try:
        return wandb.login(prompt=False, verify=False)
    except AuthenticationError:  # a key that cannot be one
        return False


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested metrics as `outer/inner` pairs; what is not a number or a text is left out."""
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float, str)):
            pairs.append((f"{prefix}{key}", value))
    return pairs

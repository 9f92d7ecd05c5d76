"""The 50 prompts of HPDv2 that the CoDeX thesis evaluates PickScore on (its tables 3 to 5)."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

from guidedgen.basics.errors import BadValue
from guidedgen.basics.tasks import Task
from guidedgen.datasets.downloads import find, reading
from guidedgen.datasets.tasks import check_limit, make_tasks, read_lines

FILE = "hps_v2_all_eval.txt"  # of github.com/mihirp1998/AlignProp
# SHA-256 of the prompts, stripped, sorted, joined by newlines.
DIGEST = "ddfee091c138726d74a14ff8f29389d5532ab78a12ceba1571a716012752872b"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hpdv2:
    """One task per prompt, white space around it aside (five prompts of the file end in a space).

    path: the text file or its folder; None: where `python scripts/fetch.py data hpdv2` puts it. It has to hold these prompts, in
        any order: figures are compared with published ones by the dataset's name. `dataset=text` takes any other file.
    """

    path: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        check_limit(self.limit)

    def tasks(self) -> Sequence[Task]:
        path = find("hpdv2", FILE, self.path)
        with reading("hpdv2", path):
            prompts = read_lines("path", str(path))
            if hashlib.sha256("\n".join(sorted(line.strip() for line in prompts)).encode()).hexdigest() != DIGEST:
                rule = f"holds {len(prompts)} prompts that are not the 50 of HPDv2 ({FILE}); dataset=text takes any file"
                raise BadValue("path", str(path), rule)
        return make_tasks(prompts[: self.limit], "hpdv2")

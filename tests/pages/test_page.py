"""The page as text: nothing of a user's becomes markup, figures are those of metrics.json, big studies stay small, and cautions."""

import base64
import html
import io
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from guidedgen.studies import page, pictures
from guidedgen.studies.cautions import cautions
from guidedgen.studies.curves import curves
from guidedgen.studies.html import Markup, tag
from guidedgen.studies.plots import Style
from guidedgen.studies.study import read_study

from .conftest import PROMPTS, MakeRun, picture

ROOT = Path(__file__).resolve().parents[2]


class Parsed(HTMLParser):
    """Elements with their attributes, and the text of those that are asked for, as a browser reads them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.open = tag
        self.texts.setdefault(tag, []).append("")

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.open = ""

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [
            found for name, found in self.found if name == tag and all(found.get(key) == value for key, value in attributes.items())
        ]


def cautions_of(folder: Path) -> str:
    return "\n".join(caution.text for caution in cautions(read_study(folder)))


def test_what_a_user_has_named_never_becomes_markup(study: Path, make_run: MakeRun) -> None:
    label = "<script>document.hacked = 1</script>\"'&"
    make_run(
        "odd",
        label=label,
        reward=9.0,
        failed={"circle-0": "</figure><script>1</script>"},
        command=["dataset.prompt=</pre><script>1"],
    )
    read = Parsed(page.page(read_study(study)))
    assert len(read.all("script")) == 1
    assert "onerror" not in str([attributes.keys() for _, attributes in read.found])
    shown = [pair["data-prompt"] for pair in read.all("article", **{"class": "pair"})]
    assert shown == [*PROMPTS.values()]
    assert [text.strip() for text in read.texts["h3"] if text][: len(shown)] == shown
    assert label in {shot["data-name"] for shot in read.all("button", **{"class": "shot"})}
    assert "failed: </figure><script>1</script>" in read.texts["div"]
    assert any("'dataset.prompt=</pre><script>1'" in text for text in read.texts["pre"])
    assert tag("p", "<b>", Markup("<i></i>"), None, title="\"'<", hidden=True, lang=None) == (
        '<p title="&quot;&#x27;&lt;" hidden>&lt;b&gt;<i></i></p>'
    )


def test_the_page_asks_the_network_for_nothing_and_runs_no_script_but_its_own(study: Path) -> None:
    read = Parsed(page.page(read_study(study)))
    addresses = [found[key] or "" for _, found in read.found for key in ("src", "href") if found.get(key)]
    assert len(addresses) > 20
    assert all(re.match(r"data:|#|[\w%.-]+/", address) and "//" not in address.split(",")[0] for address in addresses)
    [policy] = [found["content"] or "" for found in read.all("meta", **{"http-equiv": "Content-Security-Policy"})]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-") and "unsafe" not in policy
    assert not [found for _, found in read.found if "style" in found or any(key.startswith("on") for key in found)]


def test_links_lead_to_what_is_there(study: Path) -> None:
    read = Parsed(page.page(read_study(study)))
    anchors = {found.get("id") for _, found in read.found}
    for link in read.all("a"):
        address = link.get("href") or ""
        if address.startswith("#"):
            assert address[1:] in anchors
        elif address and not address.startswith("data:"):
            assert (study / address).exists()
    for shot in read.all("button", **{"class": "shot"}):
        assert (study / str(shot["data-link"])).is_file()


def test_intervals_and_wins_are_those_of_the_metrics(study: Path) -> None:
    """They are made up: no bootstrap over the records, whose scores are all equal, has them."""
    text = page.page(read_study(study))
    assert "<b>6.5*</b><small>6.25 .. 7</small>" in text
    assert "unguided 4; wins 88 %" in text
    row = text.split("published</th>")[1].split("</tr>")[0]
    assert "<td>5.59</td>" in row and "<td>120</td>" in row
    assert "Published: a thesis, Table 1, where the setting is the printed one." in text


def test_the_same_study_gives_the_same_bytes(study: Path) -> None:
    assert page.page(read_study(study)) == page.page(read_study(study))
    written = page.write(study)
    assert [file.name for file in written] == ["report.html", "report.csv", "report_cost.csv", "report.tex"]
    before = [file.read_bytes() for file in written]
    assert [file.read_bytes() for file in page.write(study)] == before  # what it wrote is no run


def test_half_a_surrogate_pair_in_a_prompt_is_no_obstacle(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("code", label="a\ud83d", prompts={"cut": "a heart \ud83d"})
    assert "a heart ?" in page.write(tmp_path / "study")[0].read_text()


def test_a_study_with_nothing_judged_has_a_page(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("code", judged=False, done=False)
    assert [file.name for file in page.write(tmp_path / "study")] == ["report.html"]
    text = (tmp_path / "study" / "report.html").read_text()
    assert "No run has been judged yet." in text and "1 of 1 runs are not done: code." in text and "data:image/png" in text


def test_the_command_and_the_config_behind_a_row(study: Path, make_run: MakeRun) -> None:
    make_run("swept", command=["-m", "seed=0,1"], options={"num_particles": 7})
    parts = page.page(read_study(study)).split('<details id="run-')[1:]
    text = {part.split('"')[0]: html.unescape(part) for part in parts}
    assert "python run.py method=code 'dataset.prompt=\"it'\"'\"'s\"'" in text["code"] and "A sweep" not in text["code"]
    assert "python run.py -m seed=0,1" in text["swept"] and "A sweep, of which this is one run" in text["swept"]
    for name, part in text.items():
        assert (study / name / "config.yaml").read_text() in part
    assert "num_particles: 7" in text["swept"]
    assert "unguided, for others to be measured against" in text["base"] and "not done" not in str(text)


def test_the_files_on_the_page_are_those_next_to_it(study: Path) -> None:
    page.write(study)
    read = Parsed((study / "report.html").read_text())
    names = [link for link in read.all("a") if link.get("download")]
    assert len(names) == 3
    for link in names:
        content = base64.b64decode(str(link["href"]).split(",")[1])
        assert content == (study / str(link["download"])).read_bytes()


# Pictures


def test_a_small_picture_is_the_stored_file_and_a_large_one_is_scaled(make_run: MakeRun, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format="PNG")
    make_run("large", png=buffer.getvalue())
    make_run("small", png=picture("red"), nfe=1)
    [pair, *_], _ = pictures.pairs(read_study(tmp_path / "study"), 10**7)
    small, large = pair.shots
    kind, _, content = small.embedded.partition(",")
    assert (kind, base64.b64decode(content)) == ("data:image/png;base64", picture("red"))
    kind, _, content = large.embedded.partition(",")
    with Image.open(io.BytesIO(base64.b64decode(content))) as scaled:
        assert (kind, scaled.size) == ("data:image/jpeg;base64", (320, 213))


def test_a_big_study_embeds_what_fits_and_links_the_rest(make_run: MakeRun, tmp_path: Path) -> None:
    """Every prompt's first seed comes before any second."""
    prompts = {str(i): f"prompt {i}" for i in range(5)}
    for label in ("one", "two"):
        make_run(label, prompts=prompts, seeds=(7, 8, 9))
    study = read_study(tmp_path / "study")
    each = 2 * len(pictures.pairs(study, 1)[0][0].shots[0].embedded)
    shown, rest = pictures.pairs(study, 6 * each)
    assert {(pair.prompt, pair.seed) for pair in shown} == {*((prompt, 7) for prompt in prompts.values()), ("prompt 0", 8)}
    assert len(shown) + len(rest) == 15 and not any(shot.embedded for pair in rest for shot in pair.shots)
    read = Parsed(page.page(study, budget=6 * each))
    assert len(read.all("img")) == 12 + 2  # and the two of the enlarged view
    links = {link.get("href") for link in read.all("a")}
    assert {"one/images/0-9.png", "two/images/4-8.png", "one/images/"} <= links and "one/images/0-7.png" not in links
    assert "6 of 15 pairs of prompt and seed are here, the others are linked below." in page.page(study, budget=6 * each)


def test_pairs_are_of_the_same_prompt_and_seed(study: Path, make_run: MakeRun) -> None:
    make_run("late", nfe=900, prompts={"square": PROMPTS["square"], "new": "new"}, failed={"new-0": "nan"})
    (study / "code" / "images" / "square-0.png").write_bytes(b"broken")
    found = {pair.prompt: [shot.run.name for shot in pair.shots] for pair in pictures.pairs(read_study(study), 10**7)[0]}
    four = ["base", "code", "mpgd", "codex"]
    assert found == {PROMPTS["circle"]: four, PROMPTS["square"]: [*four, "late"], PROMPTS["hostile"]: four}
    assert page.page(read_study(study)).count("no picture") == 1


# Curves


def test_curves_are_means_over_samples(make_run: MakeRun, tmp_path: Path) -> None:
    """Of a stream's scores the best; steps that a method repeats count together; lines that are being written are not there."""
    values = np.random.default_rng(1).normal(size=(2, 3, 4))
    trace = [{"event": "select", "step": i, "scores": [*values[k, i], None]} for i in range(3) for k in range(2)]
    folder = make_run("code", trace=[*trace, {"event": "guide", "step": 0, "rewards": 1.0}])
    with (folder / "trace.jsonl").open("a") as file:
        file.write('{"task": "circle", "seed": 0, "event": "sel')
    [run] = read_study(tmp_path / "study").runs
    found = curves(run, Style())
    assert list(found) == [("select", "scores")]  # one step is no curve
    best = values.max(axis=2)
    curve = found["select", "scores"]
    assert curve.steps == [0, 1, 2]
    np.testing.assert_allclose(curve.means, best.mean(axis=0))
    np.testing.assert_allclose(curve.lows, np.quantile(np.repeat(best, 3, axis=0), 0.1, axis=0))
    np.testing.assert_allclose(curve.highs, np.quantile(np.repeat(best, 3, axis=0), 0.9, axis=0))


def test_what_was_learned_first_is_a_curve(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("adjoint_tuning")
    (folder / "learned").mkdir()
    (folder / "learned" / "learning.json").write_text(
        '{"nfe": 8, "nfe_backward": 4, "seconds": 1.5, "lessons": 1, "curve": [{"update": 0, "reward": -2.0}, {"update": 1, "reward": -1.5}]}'
    )
    study = read_study(tmp_path / "study")
    curve = curves(study.runs[0], Style())["learn", "reward"]
    assert (list(curve.steps), list(curve.means), list(curve.lows)) == ([0, 1], [-2.0, -1.5], [-2.0, -1.5])
    assert "reward while learning, by update" in page.page(study)


# Cautions


def test_a_metric_that_shares_its_network_is_marked_with_the_other_run(study: Path, make_run: MakeRun) -> None:
    assert "aesthetic (marked *): measured by a network that also guided every guided run" in cautions_of(study)
    make_run("other", distances={"fid": {"value": 1.0, "features": "x", "shares_guide": True}})
    assert "fid (marked *): measured by a network that also guided other." in cautions_of(study)


def test_fid_of_few_images_and_intervals_of_few_prompts(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("code", compared=[2047, 4000])
    assert "FID of 2,047 images is mostly bias" in cautions_of(
        tmp_path / "study"
    ) and "Intervals are over 3 prompts" in cautions_of(tmp_path / "study")
    (tmp_path / "study" / "code" / "metrics.json").unlink()
    make_run("code", compared=[2048, 4000])
    assert "FID" not in cautions_of(tmp_path / "study")


def test_failed_samples_are_counted_with_their_reasons(study: Path, make_run: MakeRun) -> None:
    assert "failed" not in cautions_of(study)
    make_run(
        "weak", failed={"circle-0": "reward is nan", "square-0": "reward is nan"}, failures={"hostile-0": "unguided: out of memory"}
    )
    assert (
        "weak: 3 samples have failed and are not in its figures (2 x reward is nan; 1 x unguided: out of memory)."
        in cautions_of(study)
    )


def test_rows_over_other_samples_or_of_other_commits_are_reported(study: Path, make_run: MakeRun) -> None:
    assert "different samples" not in cautions_of(study) and "commits" not in cautions_of(study)
    make_run("other", seeds=(1,), commit="f" * 40)
    assert "Rows are over different samples" in cautions_of(study) and "6 samples" not in cautions_of(study)
    assert "Rows are of several commits: 000000000000 (3), ffffffffffff (1)." in cautions_of(study)


def test_rewards_of_one_name_that_differ_are_reported(study: Path, make_run: MakeRun) -> None:
    make_run("elsewhere", guide={"scorer": {"device": "cuda"}})
    assert "not the same in every row" not in cautions_of(study)
    make_run("weighed", guide={"scorer": {"device": "cpu"}, "weights": {"vqa": 1, "clip": 0}})
    assert "aesthetic is not the same in every row, it differs in weights.vqa, weights.clip: do not compare" in cautions_of(study)


def test_blurred_pictures_and_runs_at_work_are_reported(study: Path, make_run: MakeRun) -> None:
    make_run("audit", blurred=2)
    make_run("freedom", method="freedom", judged=False, done=False)
    assert "audit: 2 pictures are stored blurred and left out of distances." in cautions_of(study)
    assert "1 of 6 runs are not done: freedom." in cautions_of(study)


# The script


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "report.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env={**os.environ, "PYTHONPATH": ""})


def test_the_script_writes_the_page_and_says_where(study: Path) -> None:
    done = script(str(study))
    assert (done.returncode, done.stderr) == (0, "")
    assert [Path(line) for line in done.stdout.splitlines()] == [
        study / name for name in ("report.html", "report.csv", "report_cost.csv", "report.tex")
    ]


def test_the_script_says_in_one_line_what_is_no_study(tmp_path: Path) -> None:
    done = script(str(tmp_path / "none"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "no such folder" in done.stderr


def test_a_weighted_sum_has_a_plot_of_its_parts(make_run: MakeRun, tmp_path: Path) -> None:
    """Figure 5 of the CoDeX thesis: one reward against the other at several weights, end points and the unguided run included."""
    points = {"1:0": (6.0, 0.20), "0:1": (5.0, 0.25), "1:9": (5.8, 0.24), "1:2": (5.5, 0.21)}
    for name, (aesthetic, pick) in points.items():
        first, second = map(int, name.split(":"))
        scores = {"multi": 1.0, "aesthetic": aesthetic, "pickscore": pick}
        make_run(
            name, label=name, guide={"weights": {"aesthetic": first, "pickscore": second, "hps": 0}},
            reward=aesthetic, scores={key: {"value": value, "prompts": 3, "shares_guide": True} for key, value in scores.items()},
        )  # fmt: skip
    text = page.page(read_study(tmp_path / "study"))
    figure = text.split("aesthetic against pickscore</figcaption>")[1].split("</figure>")[0]
    on_front = {
        name
        for name in points
        if f"{name}: aesthetic {points[name][0]:.4g}, pickscore {points[name][1]:.4g}, on the front" in figure
    }
    assert on_front == {"1:0", "0:1", "1:9"}  # more of one is less of the other; 1:2 has less of both than 1:9
    assert "hps" not in text.split('id="plots"')[1].split("</section>")[0]


def test_a_single_reward_has_no_such_plot(study: Path) -> None:
    assert "aesthetic against clip_score" not in page.page(read_study(study))


def test_sheets_of_the_first_samples_are_shown(study: Path) -> None:
    """Of each kind; a link in their place leads nowhere, and runs without sheets have no part of the page."""
    assert "Evolution" not in Parsed(page.page(read_study(study))).texts["h2"]
    run = study / "code"
    names = [path.stem for path in sorted((run / "images").glob("*.png"))]
    for kind in ("copies", "gradients"):
        (run / "sheets" / kind).mkdir(parents=True)
        for name in names:
            (run / "sheets" / kind / f"{name}.png").write_bytes(picture("orange"))
    (run / "sheets" / "elsewhere").symlink_to(study / "codex" / "images")
    parsed = Parsed(page.page(read_study(study)))
    assert "Evolution" in parsed.texts["h2"]
    assert [title for title in parsed.texts["h3"] if title.endswith((": copies", ": gradients", ": elsewhere"))] == [
        "code: copies", "code: gradients",
    ]  # fmt: skip
    shown = [
        image for image in parsed.found if image[0] == "img" and (image[1]["alt"] or "").startswith(("copies of", "gradients of"))
    ]
    assert len(shown) == 2 * min(2, len(names)) and all((image[1]["src"] or "").startswith("data:image/") for image in shown)

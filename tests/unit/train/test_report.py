"""The report: one page that brings all it needs."""

import re
from html.parser import HTMLParser

from llamita.train.metrics import Metrics
from llamita.train.recipe import Recipe
from llamita.train.report import POINTS, curve, facts, render, smoothed

RECIPE = Recipe(task="pretrain")
LINES = [Metrics(n + 1, 5 / (n + 1), 0.1, 1.0, 8 * (n + 1), 8, 0.5, 1.25 if n == 9 else None) for n in range(1000)]


def test_the_page_has_curve_figures_and_texts_and_nothing_from_outside() -> None:
    page = render("a <run>", RECIPE, LINES, [("Once <b>", " & more")])
    HTMLParser().feed(page)
    assert "<script" not in page
    assert not re.search(r"(src|href)=|url\(|@import", page)
    assert "a &lt;run&gt;" in page
    assert "<b>Once &lt;b&gt;</b> &amp; more" in page
    assert "<td>held-out loss<td>1.250 nats per token" in page
    assert "optimizer = &quot;muon&quot;" in page


def test_a_curve_has_few_points_inside_its_frame() -> None:
    drawn = curve(LINES)
    lines = re.findall(r'points="([^"]+)"', drawn)
    assert len(lines) == 2
    for one in lines:
        points = [tuple(map(float, point.split(","))) for point in one.split()]
        assert 2 <= len(points) <= POINTS
        assert all(0 <= x <= 760 and 0 <= y <= 300 for x, y in points)
    assert "Too few steps" in curve(LINES[:1])


def test_figures() -> None:
    assert facts([], RECIPE) == {"steps": "0"}
    found = facts(LINES, RECIPE)
    assert (found["steps"], found["tokens learned"], found["speed"]) == ("1,000", "8,000", "16 tokens/s")
    assert found["loss"].endswith(" nats per token (mean of the last steps)")
    assert smoothed(LINES)[0] == 5
    assert abs(smoothed([LINES[3]] * 50)[-1] - 1.25) < 1e-9


def test_a_loss_has_the_unit_of_its_task() -> None:
    units = {task: facts(LINES, Recipe(task=task))["held-out loss"] for task in ("sft", "dpo", "reward", "grpo")}
    assert units == {
        "sft": "1.250 nats per token", "dpo": "1.250 per pair", "reward": "1.250 per pair", "grpo": "1.250 per token",
    }  # fmt: skip
    assert (
        facts(LINES, Recipe(task="dpo", loss="kto"))["loss"].split(" ", 1)[1] == "per answer (mean of the last steps)"
    )

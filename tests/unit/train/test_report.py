"""The report: one page that brings all it needs."""

import re
from html.parser import HTMLParser

from llamita.train.metrics import Metrics
from llamita.train.recipe import Recipe
from llamita.train.report import POINTS, curve, facts, render, smoothed

LINES = [Metrics(n + 1, 5 / (n + 1), 0.1, 1.0, 8 * (n + 1), 8, 0.5, 1.25 if n == 9 else None) for n in range(1000)]


def test_the_page_has_curve_figures_and_texts_and_nothing_from_outside() -> None:
    page = render("a <run>", Recipe(), LINES, [("Once <b>", " & more")])
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
    assert facts([]) == {"steps": "0"}
    found = facts(LINES)
    assert (found["steps"], found["tokens learned"], found["speed"]) == ("1,000", "8,000", "16 tokens/s")
    assert smoothed(LINES)[0] == 5
    assert abs(smoothed([LINES[3]] * 50)[-1] - 1.25) < 1e-9

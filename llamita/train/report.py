"""A report of a run as one HTML page: loss curve, figures, sample texts; no script, nothing from outside."""

from collections.abc import Sequence
from html import escape

from llamita.train.metrics import Metrics
from llamita.train.recipe import Recipe

WIDTH, HEIGHT, LEFT, BOTTOM = 760, 300, 46, 24
POINTS = 400  # of a curve, at most
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:800px;margin:2em auto;padding:0 1em;color:#222;background:#fff}
svg{width:100%;height:auto}svg text{font-size:12px;fill:#777}table{border-collapse:collapse}
td{padding:.15em 1.2em .15em 0}td:first-child{color:#777}pre{white-space:pre-wrap;background:#8881;padding:.8em}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}}
"""


def render(title: str, recipe: Recipe, metrics: Sequence[Metrics], samples: Sequence[tuple[str, str]]) -> str:
    """The page. samples: (prompt, continuation) pairs."""
    figures = "".join(f"<tr><td>{escape(name)}<td>{escape(value)}" for name, value in facts(metrics, recipe).items())
    texts = "".join(f"<pre><b>{escape(prompt)}</b>{escape(text)}</pre>" for prompt, text in samples)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
        f"<h1>{escape(title)}</h1><h2>Loss</h2>{curve(metrics)}<table>{figures}</table>"
        f"<h2>Sample texts</h2>{texts}<h2>Recipe</h2><pre>{escape(recipe.to_toml())}</pre></html>\n"
    )


def facts(metrics: Sequence[Metrics], recipe: Recipe) -> dict[str, str]:
    """The figures of a run by name, in the units of its task."""
    if not metrics:
        return {"steps": "0"}
    seconds = sum(line.seconds for line in metrics)
    read = sum(line.step_tokens for line in metrics)
    held_out = next((line.held_out_loss for line in reversed(metrics) if line.held_out_loss is not None), None)
    last, unit = smoothed(metrics)[-1], unit_of(recipe)
    return {
        "steps": f"{metrics[-1].step:,}",
        "tokens learned": f"{metrics[-1].tokens:,}",
        "loss": f"{last:.3f} {unit} (mean of the last steps)",
        "held-out loss": "not measured" if held_out is None else f"{held_out:.3f} {unit}",
        "seconds of steps": f"{seconds:,.1f}",
        "speed": f"{read / seconds:,.0f} tokens/s" if seconds else "",
    }


def unit_of(recipe: Recipe) -> str:
    """What a loss is given in: nats per token, or a number for each of what the task counts."""
    task = recipe.training_task()
    return "nats per token" if task.unit == "token" and not task.samples else f"per {task.unit}"


def smoothed(metrics: Sequence[Metrics], keep: float = 0.9) -> list[float]:
    """A running mean of the losses."""
    means, mean, weight = [], 0.0, 0.0
    for line in metrics:
        mean, weight = keep * mean + (1 - keep) * line.loss, keep * weight + (1 - keep)
        means.append(mean / weight)
    return means


def curve(metrics: Sequence[Metrics]) -> str:
    """Every step's loss, its running mean, and the held-out loss as points: an SVG."""
    if len(metrics) < 2:
        return "<p>Too few steps for a curve.</p>"
    losses = [line.loss for line in metrics]
    low, high = min(losses), max(losses)
    first, last = metrics[0].step, metrics[-1].step

    def at(step: int, loss: float) -> str:
        x = LEFT + (WIDTH - LEFT - 8) * (step - first) / (last - first)
        y = 8 + (HEIGHT - BOTTOM - 16) * (high - loss) / ((high - low) or 1)
        return f"{x:.1f},{y:.1f}"

    def line(values: Sequence[float], style: str) -> str:
        shown = range(0, len(values), -(-len(values) // POINTS))
        return _polyline([at(metrics[i].step, values[i]) for i in shown], style)

    dots = [at(m.step, min(max(m.held_out_loss, low), high)) for m in metrics if m.held_out_loss is not None]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="loss by step">'
        + line(losses, 'stroke="#9ac" stroke-width="1"')
        + line(smoothed(metrics), 'stroke="#26c" stroke-width="2.5"')
        + _circles(dots)
        + _labels((low, high), (first, last))
        + "</svg><p>Thin: each step. Thick: running mean. Points: held-out text.</p>"
    )


def _polyline(points: Sequence[str], style: str) -> str:
    return f'<polyline points="{" ".join(points)}" fill="none" {style}/>'


def _circles(points: Sequence[str]) -> str:
    return "".join('<circle cx="{}" cy="{}" r="4" fill="#d62"/>'.format(*point.split(",")) for point in points)


def _labels(losses: tuple[float, float], steps: tuple[int, int]) -> str:
    """The ends of both axes."""
    (low, high), (first, last) = losses, steps
    return (
        f'<text x="0" y="16">{high:.2f}</text><text x="0" y="{HEIGHT - BOTTOM - 4}">{low:.2f}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 4}">step {first}</text>'
        f'<text x="{WIDTH - 8}" y="{HEIGHT - 4}" text-anchor="end">step {last}</text>'
    )

"""The losses of a run of recovery as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fxprune.inspect.page.elements import Element, element, svg, text
from fxprune.recover.history import History, smooth

_WIDE, _HIGH, _LEFT, _TOP = 620, 220, 56, 30


def losses(history: History) -> Element:
    """Training loss step by step, as it is and smoothed, and the validation loss."""
    training = [(s.step, s.loss) for s in history.steps if math.isfinite(s.loss)]
    even = list(zip((n for n, _ in training), smooth([v for _, v in training]), strict=True))
    validation = [(e.step, e.loss) for e in history.evaluations if math.isfinite(e.loss)]
    points = [*training, *validation]
    low, high = min(v for _, v in points), max(v for _, v in points)
    room = (high - low) * 0.08 or max(abs(high), 1.0) * 0.05
    low, high = low - room, high + room
    last = max(1, *(step for step, _ in points))

    def place(step: float, loss: float) -> tuple[float, float]:
        return _LEFT + _WIDE * step / last, _TOP + _HIGH * (high - loss) / (high - low)

    drawn: list[Element] = []
    for part in range(5):
        value = low + (high - low) * part / 4
        _, y = place(0, value)
        drawn.append(element("path", d=f"M{_LEFT} {y:.1f}h{_WIDE}", class_="grid"))
        drawn.append(text(f"{value:.3g}", _LEFT - 6, y + 4, "tick", "end"))
    for step in sorted({0, last // 2, last}):
        x, _ = place(step, low)
        drawn.append(text(str(step), x, _TOP + _HIGH + 16, "tick", "middle"))
    drawn.append(_line([place(*p) for p in training], "each"))
    drawn.append(_line([place(*p) for p in even], "even"))
    drawn.append(_line([place(*p) for p in validation], "valid"))
    for step, loss in validation:
        x, y = place(step, loss)
        said = element("title", f"step {step}: validation loss {loss:.4f}")
        drawn.append(element("circle", said, cx=x, cy=y, r=3.5, class_="valid"))
    keys = [("each", "training, each step"), ("even", "smoothed"), ("valid", "validation")]
    for number, (look, words) in enumerate(keys[: 3 if validation else 2]):
        x = _LEFT + 160 * number
        drawn.append(element("path", d=f"M{x} 13h22", class_=look))
        drawn.append(text(words, x + 28, 17, "tick"))
    drawn.append(text("step", _LEFT + _WIDE, _TOP + _HIGH + 32, "tick", "end"))
    title = "Loss per token in nats, by step: training" + (", validation" if validation else "")
    return svg(title, _LEFT + _WIDE + 16, _TOP + _HIGH + 40, *drawn)


def _line(points: Sequence[tuple[float, float]], look: str) -> Element:
    path = " ".join(f"{'L' if n else 'M'}{x:.1f} {y:.1f}" for n, (x, y) in enumerate(points))
    return element("path", d=path, class_=look)

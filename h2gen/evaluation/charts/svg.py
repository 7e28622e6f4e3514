"""Building blocks of all charts: escaped text and its width, round axis values, legends, and colours."""

from __future__ import annotations

import html
import math
import unicodedata
from dataclasses import dataclass

from h2gen.wording import printable

STYLE = """\
.h2gen-chart{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
color-scheme:light dark;color:var(--ink,#22262b);--c-line:#dcdad5;--c-ground:#fdfcfa;--c-muted:#666c75;
--c-structure:#2b67b1;--c-detail:#c0562f;--c-full:#545b66;--c-guarded:#9a78c2;--c-part:#3f9d92;--c-reused:#7cc4a4;
--c-other:#c9a227;--c-skipped:#b9d3f0;--c-h2:#0f766e;--c-steps:#b4570c;--c-solver:#6b4fc0;--c-peer:#5b7089}
.h2gen-chart text{fill:currentColor;font-size:12.5px}
.h2gen-chart .muted{fill:var(--c-muted)}
.h2gen-chart .end{text-anchor:end}
.h2gen-chart .mid{text-anchor:middle}
.h2gen-chart .grid{stroke:var(--c-line);stroke-width:1;fill:none}
.h2gen-chart .ground{fill:var(--c-ground)}
.h2gen-chart .line{fill:none;stroke-width:1.75;stroke-linejoin:round;stroke-linecap:round}
.h2gen-chart .dots{fill:none;stroke-width:5;stroke-linecap:round}
.h2gen-chart .detail.dots{stroke-linecap:square;stroke-width:4}
.h2gen-chart .tau{fill:none;stroke-width:1.25;stroke-dasharray:5 5}
.h2gen-chart .detail.tau{stroke-dashoffset:5}
.h2gen-chart .structure{stroke:var(--c-structure)}
.h2gen-chart .detail{stroke:var(--c-detail)}
.h2gen-chart .over{stroke:none}
.h2gen-chart .over.structure{fill:var(--c-structure)}
.h2gen-chart .over.detail{fill:var(--c-detail)}
.h2gen-chart .full{fill:var(--c-full)}
.h2gen-chart .guarded{fill:var(--c-guarded)}
.h2gen-chart .part{fill:var(--c-part)}
.h2gen-chart .reused{fill:var(--c-reused)}
.h2gen-chart .other{fill:var(--c-other)}
.h2gen-chart .skipped{fill:var(--c-skipped)}
.h2gen-chart .bed{fill:currentColor;opacity:.06}
.h2gen-chart .hit{fill:currentColor;opacity:0}
.h2gen-chart .hit:hover{opacity:.08}
.h2gen-chart .h2{--k:var(--c-h2)}
.h2gen-chart .steps{--k:var(--c-steps)}
.h2gen-chart .solver{--k:var(--c-solver)}
.h2gen-chart .peer{--k:var(--c-peer)}
.h2gen-chart .reference{--k:currentColor}
.h2gen-chart .mark{fill:var(--k);stroke:var(--c-ground);stroke-width:1.25}
.h2gen-chart .best{fill:none;stroke:currentColor;opacity:.32;stroke-width:1.5}
.h2gen-chart .ring{fill:none;stroke:none;stroke-width:2}
.h2gen-chart .point{cursor:pointer;outline:none}
.h2gen-chart .point:hover .ring{stroke:var(--k);opacity:.5}
.h2gen-chart .point:focus-visible .ring{stroke:var(--k);stroke-dasharray:3 2}
.h2gen-chart .chosen .ring,.h2gen-chart .chosen:hover .ring{stroke:var(--k);opacity:1}
.h2gen-chart .chosen .name{font-weight:650}
.h2gen-chart .name{paint-order:stroke;stroke:var(--c-ground);stroke-width:3px;stroke-linejoin:round}
.h2gen-chart .touch{fill:transparent}
@media (prefers-color-scheme:dark){.h2gen-chart{color:var(--ink,#e7e5e1);--c-line:#33383f;--c-ground:#15181c;
--c-muted:#9aa1ab;--c-structure:#79aef2;--c-detail:#f0946c;--c-full:#a3abb8;--c-guarded:#b79be0;--c-part:#45b3a5;
--c-reused:#2f7f69;--c-other:#d9b84a;--c-skipped:#3c5878;--c-h2:#4fd0c2;--c-steps:#f2a65a;--c-solver:#b5a0ff;--c-peer:#9db1c9}}
"""
"""Standalone charts contain it; a page that embeds charts includes it once."""

_NARROW = frozenset("ijlftrI.,:;'|!()[] ")
_WIDE = frozenset("mwMW@%×±")


def escape(text: str) -> str:
    """Untrusted text, escaped for XML and for attributes."""
    return html.escape(printable(text), quote=True)


def width_of(text: str, size: float = 12.5) -> float:
    """Approximate width of the text in pixels in a system sans serif font, erring on the wide side."""

    def share(char: str) -> float:
        if char in _NARROW:
            return 0.36
        if char in _WIDE or char.isupper():
            return 0.8
        return 1.0 if unicodedata.east_asian_width(char) in "WF" else 0.63

    return size * sum(share(char) for char in text)


def shorten(text: str, width: float, size: float = 12.5) -> str:
    """The text, cut with an ellipsis if it would be wider than ``width`` pixels."""
    if width_of(text, size) <= width:
        return text
    while text and width_of(text + "…", size) > width:
        text = text[:-1]
    return text.rstrip(" ,") + "…"


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from ``low`` to ``high``, at most ``most`` of them."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    for step in (power * factor for factor in (1, 2, 2.5, 5, 10, 20, 25, 50)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            return [round(n * step, 10) for n in range(first, last + 1)]
    raise AssertionError("unreachable")


def plain(values: list[float]) -> list[str]:
    """Axis labels, all with as many decimals as the finest value needs."""
    for digits in range(6):
        if all(math.isclose(round(value, digits), value, abs_tol=1e-9) for value in values):
            return [f"{value:.{digits}f}" for value in values]
    return [f"{value:g}" for value in values]


def n(value: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")


@dataclass(frozen=True)
class Box:
    """The area of a plot, and the values at its edges: ``low`` at the bottom, ``high`` at the top."""

    left: float
    top: float
    right: float
    bottom: float
    first: float = 0.0
    last: float = 1.0
    low: float = 0.0
    high: float = 1.0

    def x(self, value: float) -> float:
        return self.left + (value - self.first) / (self.last - self.first) * (self.right - self.left)

    def y(self, value: float) -> float:
        return self.bottom - (value - self.low) / (self.high - self.low) * (self.bottom - self.top)


def legend(entries: list[tuple[str, str, float]], left: float, top: float, right: float) -> tuple[list[str], float]:
    """Swatches with their labels, in as many lines as needed.

    Args:
        entries: a swatch drawn from (0, 0) to the right, its label, and the swatch's width.

    Returns:
        The elements, and their height.
    """
    parts, x, y = [], left, top
    for swatch, words, wide in entries:
        needed = wide + 6 + width_of(words)
        if x > left and x + needed > right:
            x, y = left, y + 19
        words = shorten(words, right - left - wide - 6)
        parts.append(f'<g transform="translate({n(x)} {n(y)})">{swatch}')
        parts.append(f'<text x="{n(wide + 6)}" y="4">{escape(words)}</text></g>')
        x += needed + 16
    return parts, y - top + 19


def document(width: float, height: float, description: str, parts: list[str], *, standalone: bool) -> str:
    """The whole SVG; ``standalone`` with its own colours and background."""
    own = f'<style>{STYLE}</style><rect class="ground" width="100%" height="100%"/>' if standalone else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="h2gen-chart" viewBox="0 0 {n(width)} {n(height)}" '
        f'width="{n(width)}" height="{n(height)}" role="{"img" if standalone else "group"}" '
        f'aria-label="{escape(description)}">{own}{"".join(parts)}</svg>'
    )

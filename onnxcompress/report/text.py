"""Figures and names as people read them."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return `text` with everything escaped that a terminal would not show as it stands: control characters,
    changes of writing direction, invisible characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def count(value: int | None, reference: int | None = None) -> str:
    """Return a number of parameters or MACs in the unit that suits `reference` (default: itself): `1,582.67 M`."""
    if value is None:
        return "-"
    largest = max(reference or 0, value)
    for unit, scale, least in (("G", 10**9, 10**10), ("M", 10**6, 10**6), ("k", 10**3, 10**4)):
        if largest >= least:
            return f"{value / scale:,.2f} {unit}"
    return f"{value:,}"


def size(value: int | None, reference: int | None = None) -> str:
    """Return bytes in decimal units: `28.01 MB`."""
    text = count(value, reference)
    return text if value is None else f"{text}B" if text[-1].isalpha() else f"{text} B"


def percent(value: float | None) -> str:
    """Return a percentage with one decimal."""
    return "-" if value is None else f"{value:.1f} %"


def points(value: float | None) -> str:
    """Return a signed difference of percentages; what is zero has a plus."""
    return "-" if value is None else f"{round(value, 1) + 0.0:+.1f} points"


def counted(number: float, noun: str) -> str:
    """Return a number with its noun, in the singular where it is one: `1 trial`, `2.5 points`."""
    return f"{number:.10g} {noun}{'' if number == 1 else 's'}"


def milliseconds(value: float | None) -> str:
    """Return ms with three significant digits or so."""
    if value is None:
        return "-"
    return f"{value:.{2 if value < 10 else 1 if value < 1000 else 0}f} ms"


def times(ratio: float | None, better: str, worse: str) -> str:
    """Return a ratio original / compressed in words: `2.53 x fewer`, `1.20 x more`, `same`."""
    if ratio is None:
        return "-"
    if abs(ratio - 1) < 0.005:
        return "same"
    return f"{ratio:.2f} x {better}" if ratio > 1 else f"{1 / ratio:.2f} x {worse}" if ratio > 0 else "-"


def duration(seconds: float | None) -> str:
    """Return a time in the unit that suits it: `12 s`, `3 min`, `2 h 5 min`."""
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"

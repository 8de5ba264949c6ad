"""Small pieces of HTML and words for quantities."""

import re
from html import escape
from math import isfinite


def escaped(text: str) -> str:
    """Text for HTML: markup and quotes made harmless, control characters made visible."""
    visible = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return escape(visible)


def worded(text: str) -> str:
    """Escaped prose in which flags and `commands` are code, so that no line breaks inside a flag."""
    return re.sub(r"`([^`]+)`|(--[a-z][\w.-]*\w)", lambda found: f"<code>{found[1] or found[2]}</code>", escaped(text))


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table of escaped cells that scrolls by itself on a narrow screen."""
    head = "".join(f"<th>{escaped(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{escaped(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class='scroll'><table><tr>{head}</tr>{body}</table></div>"


def bulk(amount: float | None) -> str:
    """1234567 -> 1.23 M; – when unknown."""
    if amount is None or not isfinite(amount):
        return "–"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(amount) >= size:
            return f"{amount / size:.3g} {unit}"
    return f"{amount:.3g}"


def duration(seconds: float | None) -> str:
    """Seconds as 42 s, 3 min 20 s or 2 h 5 min."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"

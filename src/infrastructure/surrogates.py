"""Halves of characters that UTF-8 cannot hold."""


def well_formed(text: str) -> str:
    """text with surrogate pairs joined and lone surrogates, which UTF-8 cannot hold, replaced by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text

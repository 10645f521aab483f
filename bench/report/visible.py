"""Text of others (titles, names, commands), made harmless to read; escaping is what the writers do on top."""

import unicodedata

# Characters that change the order in which a line is read, and so can disguise what stands in it.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_UNSEEN = ("Cc", "Cs", "Zl", "Zp")


def visible(text: str) -> str:
    """The text with a space for each control, bidirectional and line-ending character.

    What is left may stand in XML; letters that are written from right to left stay.
    """
    return "".join(" " if _hidden(c) else c for c in text)


def _hidden(c: str) -> bool:
    return c in _BIDI or unicodedata.category(c) in _UNSEEN or ord(c) & 0xFFFE == 0xFFFE


def clipped(text: str, letters: int) -> str:
    """At most `letters` characters; a long text loses its middle, because names often differ at the end."""
    shown = " ".join(visible(text).split())
    if len(shown) <= letters:
        return shown
    tail = (letters - 1) // 2
    return f"{shown[: letters - 1 - tail]}…{shown[len(shown) - tail :]}"

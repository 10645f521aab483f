import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.report.visible import clipped, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\u202eevil\u202c", " evil "),
        ("a\x00b\x1bc\nd\u2028e\ufffef", "a b c d e f"),
        ("Ünï \u05e2\u05d1 漢字 👩\u200d🚀", "Ünï \u05e2\u05d1 漢字 👩\u200d🚀"),
    ],
)
def test_what_disguises_or_breaks_a_line_is_a_space_and_letters_stay(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text(max_size=200), st.integers(2, 40))
def test_clipped_text_is_short_enough(text: str, letters: int) -> None:
    assert len(clipped(text, letters)) <= letters


def test_clipping_keeps_both_ends() -> None:
    assert clipped("student-onnx:fp32", 12) == "studen…:fp32"
    assert clipped("short", 12) == "short"

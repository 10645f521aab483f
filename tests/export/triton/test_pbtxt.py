import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.triton.pbtxt import Message, Word, read_pbtxt, write_pbtxt
from recommender.errors import InputError

SCALARS = st.one_of(
    st.text(),
    st.integers(-(2**62), 2**62),
    st.booleans(),
    st.sampled_from([Word("KIND_CPU"), Word("REJECT")]),
)
NAMES = st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True)
MESSAGES: st.SearchStrategy[Message] = st.recursive(
    st.dictionaries(NAMES, SCALARS, min_size=1, max_size=3),
    lambda inner: st.dictionaries(
        NAMES, st.one_of(SCALARS, inner, st.lists(inner, min_size=1, max_size=2)), max_size=3
    ),
    max_leaves=6,
)


def as_read(value: object) -> object:
    """Every field a list of its values, as the reader gives them."""
    if isinstance(value, dict):
        return {
            key: [as_read(each) for each in (v if isinstance(v, list) else [v])] for key, v in value.items()
        }
    return value


@given(MESSAGES)
def test_what_is_written_is_read_back(message: Message) -> None:
    assert read_pbtxt(write_pbtxt(message), "x") == as_read(message)


def test_comments_separators_and_colons_are_as_the_text_format_allows() -> None:
    text = """# a comment
    name: "a # b" max_batch_size: 4;  # another
    input [ { name: "x", dims: [ -1, 5 ] }, { name: "y" dims: 3 } ]
    input: { name: "z" }
    """
    assert read_pbtxt(text, "x") == {
        "name": ["a # b"],
        "max_batch_size": [4],
        "input": [{"name": ["x"], "dims": [-1, 5]}, {"name": ["y"], "dims": [3]}, {"name": ["z"]}],
    }


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('name: "a', "line 1: cannot be read"),
        ("input {\n name: 1", "ends before a '}'"),
        ('a: 1\nname: "\\x"', "line 2: .* cannot be read"),
        ("dims: [1, 2", "ends before a ']'"),
        ("name:", "ends where a value belongs"),
        ("a: 1\n}", "line 2: '}' where a field belongs"),
        ("a: }", "where a value belongs"),
        ('"a": 1', "where a field belongs"),
    ],
)
def test_broken_text_is_told_with_its_place(text: str, what: str) -> None:
    with pytest.raises(InputError, match=what):
        read_pbtxt(text, "config.pbtxt")

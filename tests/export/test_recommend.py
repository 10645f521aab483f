from pathlib import Path

import pytest

from export.recommend import recommend, split_ids
from export.runtime import Artifact
from recommender.errors import InputError
from tests.export.fixtures import TOP_K


def test_recommend_answers_with_titles(exported: Path) -> None:
    answer = recommend(exported, ["i3", "i4"], 5)
    assert answer == Artifact(exported).recommend(["i3", "i4"], 5)
    assert answer[0]["title"] == f"Item {answer[0]['item_id']}"


@pytest.mark.parametrize(
    ("history", "k", "message"),
    [
        (["i3", "i4000"], 5, "did you mean 'i40'"),
        ([], 5, "history is empty"),
        (["i3"], TOP_K + 1, "lists of 1 to"),
    ],
)
def test_bad_requests_are_input_errors(exported: Path, history: list[str], k: int, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        recommend(exported, history, k)
    assert caught.value.exit_code == 2


def test_an_altered_artifact_is_not_asked(folder: Path) -> None:
    titles = folder / "catalogue-1" / "titles.utf8"
    titles.write_text(titles.read_text().replace("Item i1", "Item j1", 1))
    with pytest.raises(InputError, match=r"titles\.utf8 was altered"):
        recommend(folder, ["i3"], 5)


def test_ids_are_split_at_commas() -> None:
    assert split_ids(" a, b b ,,c,") == ["a", "b b", "c"]

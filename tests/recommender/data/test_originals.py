"""Each named source from tiny files in the format of its makers."""

import gzip
import json
from pathlib import Path

import pytest

from recommender.data.config import DataConfig
from recommender.data.originals import GENRES_100K
from recommender.data.prepare import prepare
from recommender.data.prepared import Prepared
from recommender.data.sources import SOURCES
from recommender.errors import InputError
from tests.recommender.data.conftest import SMALL, histories


def flags(*genres: str) -> str:
    return "|".join("1" if genre in genres else "0" for genre in GENRES_100K)


def review(user: str, item: str, time: int, rating: float, **more: object) -> str:
    text = {"reviewText": "long 'text', \"quoted\"", "helpful": [0, 1]}
    return json.dumps(
        {"reviewerID": user, "asin": item, "overall": rating, "unixReviewTime": time, **text, **more}
    )


EVENTS_2023 = (("ann", "A", 2000, 5.0), ("bob", "A", 3000, 3.0), ("ann", "B", 1999, 4.0))

# source -> files in the makers' format. Every log: ann B (time 1), ann A (time 2), bob A (time 3, rating 3).
FILES: dict[str, dict[str, str]] = {
    "ml-100k": {
        "u.data": "1\t10\t5\t2\n2\t10\t3\t3\n1\t20\t4\t1\n",
        "u.item": f"10|Amélie (2001)|01-Jan-2001||x|{flags('Comedy', 'Romance')}\n20|Z||||{flags()}\n",
    },
    "ml-1m": {
        "ratings.dat": "1::10::5::2\n2::10::3::3\n1::20::4::1\n",
        "movies.dat": "10::Amélie: the \"film\" (2001)::Comedy|Romance\n20::Z::Drama\n",
    },
    "ml-latest-small": {
        "ratings.csv": "userId,movieId,rating,timestamp\n1,10,5.0,2\n2,10,3.0,3\n1,20,4.0,1\n",
        "movies.csv": 'movieId,title,genres\n10,"Saw, The (2001)",Comedy|Romance\n20,Z,(no genres listed)\n',
    },
    "amazon-reviews-2014-5core:Beauty": {
        "reviews_Beauty_5.json": "\n".join(
            [review("ann", "A", 2, 5), review("bob", "A", 3, 3), review("ann", "B", 1, 4)]
        ),
        "meta_Beauty.json": "{'asin': 'A', 'title': \"Nail &amp; \\n Lacquer's\", 'price': 2.5, "
        "'categories': [['Beauty', 'Makeup'], ['Gifts']]}\n{'asin': 'B', 'imUrl': 'http://x'}\n",
    },
    "amazon-reviews-2018:Video_Games": {
        "Video_Games_5.json": "\n".join(
            [
                review("ann", "A", 2, 5, vote="1,003"),
                review("bob", "A", 3, 3, style={"Color:": "red"}),
                review("ann", "B", 1, 4, image=["x"]),
            ]
        ),
        "meta_Video_Games.json": '{"asin": "A", "title": "Pad &amp; Stick", "category": ["Games", "Pads"]}\n'
        '{"asin": "B", "title": "var aPageStart = (new Date()).getTime();", "category": []}\n',
    },
    "amazon-reviews-2023:All_Beauty": {
        "All_Beauty.jsonl": "\n".join(
            json.dumps({"parent_asin": item, "asin": "V", "user_id": user, "timestamp": ms, "rating": rating})
            for user, item, ms, rating in EVENTS_2023
        ),
        "meta_All_Beauty.jsonl": '{"parent_asin": "A", "title": "Brush", "categories": ["Beauty", "Hair"]}\n'
        '{"parent_asin": "B", "title": null, "categories": [], "details": {}}\n',
    },
}  # fmt: skip
TITLES = {
    "ml-100k": ("Amélie (2001)", "Comedy|Romance"),
    "ml-1m": ('Amélie: the "film" (2001)', "Comedy|Romance"),
    "ml-latest-small": ("Saw, The (2001)", "Comedy|Romance"),
    "amazon-reviews-2014-5core:Beauty": ("Nail & Lacquer's", "Beauty > Makeup; Gifts"),
    "amazon-reviews-2018:Video_Games": ("Pad & Stick", "Games > Pads"),
    "amazon-reviews-2023:All_Beauty": ("Brush", "Beauty > Hair"),
}
ENCODING = {"u.item": "latin-1", "movies.dat": "latin-1"}


def put(root: Path, name: str, *, packed: bool = False, **replaced: str) -> None:
    folder = root / name.partition(":")[0]
    folder.mkdir()
    for file, text in (FILES[name] | replaced).items():
        content = text.encode(ENCODING.get(file, "utf-8"))
        (folder / (f"{file}.gz" if packed else file)).write_bytes(
            gzip.compress(content) if packed else content
        )


def load(root: Path, name: str, **settings: object) -> Prepared:
    return prepare(
        DataConfig.model_validate({"source": name, "root": root, **SMALL, **settings}), root / "cache"
    )


def test_every_listed_source_with_files_is_tested_here() -> None:
    listed = {source.folder for source in SOURCES if source.files}
    assert listed == {name.partition(":")[0] for name in FILES} and set(FILES) == set(TITLES)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_a_source_is_read_from_its_original_files(tmp_path: Path, name: str, packed: bool) -> None:
    put(tmp_path, name, packed=packed)
    prepared = load(tmp_path, name)
    user, item, other = ("1", "10", "20") if name.startswith("ml") else ("ann", "A", "B")
    assert histories(prepared)[user] == [other, item] and prepared.n_users == 2
    assert prepared.times is not None and prepared.times.tolist() == [1, 2, 3]
    assert (prepared.meta["name"], prepared.meta["order_by"]) == (name, "time")
    texts = {row["item_id"]: row for row in prepared.catalogue.to_dicts()}
    assert (texts[item]["title"], texts[item]["categories"]) == TITLES[name]
    if name.startswith("amazon"):
        assert texts[other]["title"] == ""


@pytest.mark.parametrize("name", FILES)
def test_ratings_of_a_source_can_be_filtered(tmp_path: Path, name: str) -> None:
    put(tmp_path, name)
    assert load(tmp_path, name, min_rating=4).n_users == 1


@pytest.mark.parametrize(
    "line", ["__import__('os').system('true')", "{'asin': open('x')}", "{'title': 'no id'}", "[1]", "{'asin'"]
)
def test_a_product_line_that_is_not_a_plain_record_is_refused_and_not_run(tmp_path: Path, line: str) -> None:
    name = "amazon-reviews-2014-5core:Beauty"
    put(tmp_path, name, **{"meta_Beauty.json": f"{{'asin': 'A'}}\n{line}\n"})
    with pytest.raises(InputError, match="line 2 is not a product record"):
        load(tmp_path, name)


@pytest.mark.parametrize(("name", "file"), [("ml-100k", "u.item"), ("ml-1m", "movies.dat")])
def test_a_film_line_with_missing_fields_is_refused(tmp_path: Path, name: str, file: str) -> None:
    put(tmp_path, name, **{file: "10\n"})
    with pytest.raises(InputError, match="line 1 has 1 fields"):
        load(tmp_path, name)


def test_a_cut_packed_product_file_is_refused(tmp_path: Path) -> None:
    name = "amazon-reviews-2014-5core:Beauty"
    put(tmp_path, name, packed=True)
    file = tmp_path / "amazon-reviews-2014-5core" / "meta_Beauty.json.gz"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path, name)

"""The named sources: what they are, their terms, which original files they need and where those lie."""

import re
from dataclasses import dataclass
from typing import Literal

from recommender.errors import InputError, nearest

GROUPLENS = "https://files.grouplens.org/datasets/movielens"
AMAZON_2014 = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
AMAZON_2018 = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2"
AMAZON_2023 = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw"

MOVIELENS_TERMS = (
    "GroupLens, University of Minnesota: research use; acknowledge the data set (Harper and Konstan 2015, "
    "ACM TiiS 5(4):19); no endorsement may be implied; no commercial or revenue-bearing use without "
    "permission; {more}. The README in the archive holds the full terms."
)
AMAZON_TERMS = (
    "Amazon review data, McAuley Lab, UC San Diego: no formal licence; released for research with citation "
    "({cite}). Do not redistribute."
)


@dataclass(frozen=True)
class Remote:
    """One public file of a source. `md5`: a file of the same name with .md5 states its checksum."""

    name: str
    url: str
    md5: bool = False
    members: tuple[str, ...] = ()  # what to take out of a .zip


@dataclass(frozen=True)
class Source:
    """A named source; `{name}` in files and addresses stands for the part after the colon."""

    name: str
    what: str
    licence: str
    kind: Literal[
        "embedded", "ml-100k", "ml-1m", "ml-latest-small", "amazon-2014", "amazon-2018", "amazon-2023"
    ]
    log: str = ""
    items: str = ""
    remotes: tuple[Remote, ...] = ()

    @property
    def fetchable(self) -> bool:
        """True when `fetch` knows a public address."""
        return bool(self.remotes)

    @property
    def files(self) -> tuple[str, ...]:
        """The original files that its parser reads: the log, then the items."""
        return tuple(file for file in (self.log, self.items) if file)

    @property
    def folder(self) -> str:
        """Its folder below the root."""
        return self.name.partition(":")[0]

    def of(self, category: str) -> "Source":
        """The same source with `{name}` filled in."""
        remotes = (Remote(r.name.format(name=category), r.url.format(name=category)) for r in self.remotes)
        return Source(
            name=f"{self.folder}:{category}",
            what=self.what,
            licence=self.licence,
            kind=self.kind,
            log=self.log.format(name=category),
            items=self.items.format(name=category),
            remotes=tuple(remotes),
        )


def _movielens(
    name: Literal["ml-100k", "ml-1m", "ml-latest-small"], what: str, more: str, *files: str
) -> Source:
    archive = Remote(
        f"{name}.zip", f"{GROUPLENS}/{name}.zip", md5=True, members=(*files, "README", "README.txt")
    )
    terms = MOVIELENS_TERMS.format(more=more)
    return Source(name, what, terms, name, log=files[0], items=files[1], remotes=(archive,))


SOURCES = (
    Source(
        "synthetic",
        "made-up shop with item titles, skewed popularity and sequences that ids and words both predict",
        "ours (Apache-2.0)",
        "embedded",
    ),
    _movielens(
        "ml-100k", "MovieLens 100K (1998): 943 users, 1,682 films", "no redistribution", "u.data", "u.item"
    ),
    _movielens(
        "ml-1m",
        "MovieLens 1M (2003): 6,040 users, 3,706 films",
        "no redistribution",
        "ratings.dat",
        "movies.dat",
    ),
    _movielens(
        "ml-latest-small",
        "MovieLens latest-small (2018): 610 users, 9,724 films; for development",
        "redistribution under the same terms",
        "ratings.csv",
        "movies.csv",
    ),
    Source(
        "amazon-reviews-2014-5core:NAME",
        "Amazon reviews 1996-2014, 5-core of a category, e.g. :Beauty",
        AMAZON_TERMS.format(cite="McAuley et al. SIGIR 2015; He and McAuley WWW 2016"),
        "amazon-2014",
        log="reviews_{name}_5.json",
        items="meta_{name}.json",
        remotes=(
            Remote("reviews_{name}_5.json.gz", AMAZON_2014 + "/reviews_{name}_5.json.gz"),
            Remote("meta_{name}.json.gz", AMAZON_2014 + "/meta_{name}.json.gz"),
        ),
    ),
    Source(
        "amazon-reviews-2018:NAME",
        "Amazon reviews 1996-2018, 5-core of a category, e.g. :Video_Games",
        AMAZON_TERMS.format(cite="Ni et al. EMNLP 2019"),
        "amazon-2018",
        log="{name}_5.json",
        items="meta_{name}.json",
        remotes=(
            Remote("{name}_5.json.gz", AMAZON_2018 + "/categoryFilesSmall/{name}_5.json.gz"),
            Remote("meta_{name}.json.gz", AMAZON_2018 + "/metaFiles2/meta_{name}.json.gz"),
        ),
    ),
    Source(
        "amazon-reviews-2023:NAME",
        "Amazon reviews 1996-2023, all of a category, e.g. :All_Beauty (large; filter it)",
        AMAZON_TERMS.format(cite="Hou et al. 2024, arXiv 2403.03952"),
        "amazon-2023",
        log="{name}.jsonl",
        items="meta_{name}.jsonl",
        remotes=(
            Remote("{name}.jsonl.gz", AMAZON_2023 + "/review_categories/{name}.jsonl.gz"),
            Remote("meta_{name}.jsonl.gz", AMAZON_2023 + "/meta_categories/meta_{name}.jsonl.gz"),
        ),
    ),
)


def find_source(name: str, further: tuple[str, ...] = ()) -> Source:
    """The source of that name. Raises InputError with the nearest spelling; `further`: other valid names."""
    head, colon, category = name.partition(":")
    for source in SOURCES:
        if source.folder != head:
            continue
        if ":" not in source.name and not colon:
            return source
        if ":" in source.name and re.fullmatch(r"[A-Za-z0-9_]+", category):
            return source.of(category)
        raise InputError(
            f"source {name!r} is written {source.name}", where="data.source", fix=f"it is: {source.what}"
        )
    known = [source.folder for source in SOURCES]
    raise InputError(
        f"unknown source {name!r}{nearest(head, [*known, *further])}",
        where="data.source",
        fix="`recpress data sources` lists all; for a log of your own use data.interactions",
    )

"""The embedded synthetic log: a made-up shop whose shoppers item ids and title words can both predict.

Every item is a kind of thing (a noun) in a style (a brand and an adjective) with a finish. A shopper has one
favourite style, which shows only in the whole history. After an item comes, with fixed chances, the same
thing in the next finish; or what goes with it, or with the item before it (a Markov chain over kinds), mostly
in the shopper's style; or something popular. Kinds, styles and finishes are skewed by Zipf's law, and so is
the popularity of items. So popularity, the last item alone, and the whole history predict ever better.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recommender.data.config import SyntheticLog
from recommender.data.log import Log, encode

KINDS = (
    ("Kitchen", "coffee grinder"), ("Kitchen", "espresso cup"), ("Kitchen", "tea kettle"),
    ("Kitchen", "bread knife"), ("Kitchen", "cutting board"), ("Desk", "fountain pen"),
    ("Desk", "paper notebook"), ("Desk", "reading lamp"), ("Desk", "pencil case"), ("Desk", "letter tray"),
    ("Outdoor", "hiking backpack"), ("Outdoor", "water bottle"), ("Outdoor", "camping stove"),
    ("Outdoor", "sleeping bag"), ("Outdoor", "trail jacket"), ("Home", "wool blanket"),
    ("Home", "flower vase"), ("Home", "scented candle"), ("Home", "wall clock"), ("Home", "picture frame"),
)  # fmt: skip
STYLES = (
    ("Harbor", "vintage"), ("Juniper", "rustic"), ("Summit", "sporty"), ("Granite", "minimalist"),
    ("Willow", "classic"), ("Falcon", "modern"), ("Copper", "industrial"), ("Meadow", "colourful"),
)  # fmt: skip
FINISHES = (
    "black",
    "white",
    "red",
    "blue",
    "green",
    "grey",
    "yellow",
    "brown",
    "silver",
    "golden",
)

NEXT_FINISH = 0.25
GOES_WITH_LAST = 0.35
GOES_WITH_BEFORE = 0.25
LIKELY_FOLLOWER = 0.8
FAVOURITE_STYLE = 0.7
SECONDS_PER_DAY = 86_400
EPOCH = 1_700_000_000


@dataclass(frozen=True)
class Shop:
    """The items: [I] kind, style and finish numbers; item i is the i-th combination in catalogue order."""

    kind: NDArray[np.int64]
    style: NDArray[np.int64]
    finish: NDArray[np.int64]

    def titles(self) -> list[str]:
        """'Juniper rustic tea kettle, blue'; from the eleventh finish on an edition number follows."""
        return [self._title(k, s, f) for k, s, f in zip(self.kind, self.style, self.finish, strict=True)]

    @staticmethod
    def _title(kind: int, style: int, finish: int) -> str:
        brand, adjective = STYLES[style]
        edition, colour = divmod(int(finish), len(FINISHES))
        suffix = f", edition {edition + 1}" if edition else ""
        return f"{brand} {adjective} {KINDS[kind][1]}, {FINISHES[colour]}{suffix}"


def build_shop(n_items: int) -> Shop:
    """Spread `n_items` evenly over kinds and styles; what is left over becomes further finishes."""
    number = np.arange(n_items)
    cell, finish = (
        number % (len(KINDS) * len(STYLES)),
        number // (len(KINDS) * len(STYLES)),
    )
    return Shop(kind=cell % len(KINDS), style=cell // len(KINDS), finish=finish)


def synthetic_items(size: SyntheticLog) -> pl.DataFrame:
    """The item table: item_id, title, categories ('Kitchen > tea kettle')."""
    shop = build_shop(size.items)
    return pl.DataFrame(
        {
            "item_id": _item_ids(size),
            "title": shop.titles(),
            "categories": [" > ".join(KINDS[kind]) for kind in shop.kind],
        }
    )


def synthetic_log(size: SyntheticLog) -> Log:
    """The interactions of all shoppers in the order of time, as a log without repeats.

    Equal sizes and seeds give equal logs.
    """
    rng = np.random.default_rng(size.seed)
    shop = build_shop(size.items)
    shortest = min(6, int(size.mean_length))
    lengths = shortest + rng.geometric(1 / (size.mean_length - shortest + 1), size.users) - 1
    lengths = np.minimum(lengths, size.items // 2)
    walk = _Walk(shop, rng)
    users = np.repeat(np.arange(size.users, dtype=np.int32), lengths)
    items = np.concatenate([walk.shopper(int(length)) for length in lengths])
    starts = rng.integers(0, 365 * SECONDS_PER_DAY, size.users)
    gaps = 60 + rng.exponential(2 * SECONDS_PER_DAY, len(users)).astype(np.int64)
    total = np.cumsum(gaps)
    before = np.repeat(total[np.cumsum(lengths) - lengths], lengths)
    times = EPOCH + np.repeat(starts, lengths) + total - before
    by_time = np.argsort(times, kind="stable")
    ids = pl.Series("item_id", _item_ids(size), dtype=pl.String)
    codes, item_ids = encode(ids.gather(items[by_time]))
    return Log(
        users=users[by_time],
        items=codes,
        user_ids=pl.Series([f"u{number:05d}" for number in range(size.users)], dtype=pl.String),
        item_ids=item_ids,
        time=times[by_time],
    )


def _item_ids(size: SyntheticLog) -> list[str]:
    # Shuffled numbers: an id must not tell what the item is.
    numbers = np.random.default_rng([size.seed, 1]).permutation(size.items)
    return [f"i{number:05d}" for number in numbers]


class _Walk:
    """Draws shopping histories: the shop's chances, drawn once for all shoppers."""

    def __init__(self, shop: Shop, rng: np.random.Generator) -> None:
        self.shop, self.rng = shop, rng
        kinds, styles = len(KINDS), len(STYLES)
        self.cells: dict[tuple[int, int], NDArray[np.int64]] = {
            (kind, style): np.flatnonzero((shop.kind == kind) & (shop.style == style))
            for kind in range(kinds)
            for style in range(styles)
        }
        self.kind_chance = _zipf(kinds, 0.8)[rng.permutation(kinds)]
        self.style_chance = _zipf(styles, 0.6)[rng.permutation(styles)]
        # What goes with what: each kind has two followers, one likely and one less so.
        self.follower = np.stack([rng.permutation(kinds) for _ in range(2)], axis=1)

    def shopper(self, length: int) -> NDArray[np.int32]:
        """One history of `length` different items."""
        favourite = int(self.rng.choice(len(STYLES), p=self.style_chance))
        chosen: list[int] = []
        seen: set[int] = set()
        while len(chosen) < length:
            item = self._next(chosen, favourite)
            if item is not None and item not in seen:
                chosen.append(item)
                seen.add(item)
        return np.array(chosen, dtype=np.int32)

    def _next(self, chosen: list[int], favourite: int) -> int | None:
        """A candidate for the next item; None where the shop has nothing of that kind and style."""
        draw = self.rng.random()
        if chosen and draw < NEXT_FINISH:
            last = chosen[-1]
            cell = self.cells[int(self.shop.kind[last]), int(self.shop.style[last])]
            return int(cell[(int(self.shop.finish[last]) + 1) % len(cell)])
        kind = int(self.rng.choice(len(KINDS), p=self.kind_chance))
        if chosen and draw < NEXT_FINISH + GOES_WITH_LAST:
            kind = self._follower_of(chosen[-1])
        elif len(chosen) > 1 and draw < NEXT_FINISH + GOES_WITH_LAST + GOES_WITH_BEFORE:
            kind = self._follower_of(chosen[-2])
        style = favourite
        if self.rng.random() >= FAVOURITE_STYLE:
            style = int(self.rng.choice(len(STYLES), p=self.style_chance))
        cell = self.cells[kind, style]
        return int(self.rng.choice(cell, p=_zipf(len(cell), 1.0))) if len(cell) else None

    def _follower_of(self, item: int) -> int:
        likely = self.rng.random() < LIKELY_FOLLOWER
        return int(self.follower[self.shop.kind[item], 0 if likely else 1])


def _zipf(size: int, exponent: float) -> NDArray[np.float64]:
    weights = 1 / np.arange(1, size + 1) ** exponent
    chance: NDArray[np.float64] = weights / weights.sum()
    return chance

"""`recpress recommend`: one user's list from an artifact, with titles."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from recpress.cli import show
from recpress.cli.options import Json


class ServedOn(StrEnum):
    """Where an artifact computes."""

    cpu = "cpu"
    cuda = "cuda"
    tensorrt = "tensorrt"


def recommend(
    artifact: Annotated[Path, typer.Argument(help="Folder of an artifact.")],
    history: Annotated[str, typer.Option("--history", help="The user's item ids, oldest first, by commas.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many items.")] = 10,
    variant: Annotated[
        str | None, typer.Option("--variant", help="Variant; default: the manifest's.")
    ] = None,
    device: Annotated[
        ServedOn | None,
        typer.Option(
            "--device", help="Where to compute; tensorrt: onnxruntime's provider, for whole graphs."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Recommend to one user; needs no torch.

    Example: recpress recommend runs/quickstart/artifacts/student-onnx --history "i00003,i00017" -k 5
    """
    from export.recommend import recommend as recommend_from
    from export.recommend import split_ids

    found = recommend_from(artifact, split_ids(history), k, variant=variant, device=device and device.value)
    rows = [
        (number, each["item_id"], each["title"], f"{each['score']:.3f}")
        for number, each in enumerate(found, 1)
    ]
    show.table("", (">", "item", "title", ">score"), rows)
    if as_json:
        show.document({"artifact": str(artifact), "history": split_ids(history), "items": found})

"""What a repository is made of and how the server runs it: the section `triton` of the export stage."""

from collections.abc import Collection, Iterator, Mapping
from typing import Literal

from pydantic import Field

from export.variants import SPLIT, VariantName
from recommender.data.config import Section
from recommender.errors import nearest
from recommender.stage import Shape

OF_ONNX = ("top_k", "opset", "variants", "int8_users", "ann", "parity")
"""Settings of the export stage that say nothing of a repository."""


class TritonConfig(Section):
    """Of `format: triton`; each variant becomes a model of its own."""

    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="the model that clients ask, which serves the first variant; further ones are "
        "NAME-VARIANT; null: the name of the repository",
    )
    variants: tuple[VariantName, ...] = Field(
        ("fp32",),
        min_length=1,
        description="variants of the artifact to serve; those that are one graph: fp32, fp16, bf16, compiled "
        "ones and engines",
    )
    kind: Literal["cpu", "gpu"] = Field("cpu", description="where the server runs ONNX graphs")
    instances: int = Field(1, ge=1, description="copies of each model that answer at the same time")
    threads: int | None = Field(
        None, ge=1, description="of one call of an ONNX graph on the CPU; null: all cores, for each instance"
    )
    version: int = Field(1, ge=1, description="version of the models: the name of the folder of the graph")
    max_batch_size: int = Field(64, ge=1, description="most requests that the server answers in one call")
    max_queue_delay_microseconds: int = Field(
        500, ge=0, description="how long a request may wait for others to share a call"
    )
    timeout_microseconds: int = Field(
        50_000, ge=0, description="a request that waited longer is refused; 0: never"
    )
    queue_size: int = Field(
        256, ge=0, description="requests that may wait, more are refused; 0: as many as come"
    )
    seen_step: int = Field(
        64, ge=1, description="clients pad the rows to mask to a multiple: requests of one shape share a call"
    )


def repository_problems(
    of: str, triton: TritonConfig, given: Collection[str], known: Mapping[str, Shape]
) -> Iterator[tuple[str, str]]:
    """What can be seen of a wrong `format: triton` before running; `given`: fields that were written."""
    if known[of].kind == "checkpoint":
        yield "of", f"format triton takes an artifact: export {of!r} with format onnx first"
    for name in OF_ONNX:
        if name in given:
            yield name, "is of format onnx: a repository takes the graphs of its artifact as they are"
    for variant in triton.variants:
        if variant in SPLIT:
            whole = nearest("fp32", [v for v in ("fp32", "fp16", "bf16")])
            yield "triton.variants", f"{variant} is a body and a head, and a server wants one graph{whole}"
    if len(set(triton.variants)) < len(triton.variants):
        yield "triton.variants", "names a variant twice"

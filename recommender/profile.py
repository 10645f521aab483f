"""What a depth profile says: how much each block of a body matters on one data set, and what cutting costs.

`compress` makes it, `bench` shows it, people edit their plan by it.
"""

from pydantic import BaseModel, ConfigDict, Field


class Part(BaseModel):
    """Base of every part: frozen, finite numbers only, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Cut(Part):
    """Angular distance over one contiguous cut (Gromov et al., 2024): blocks first..first+length-1 go."""

    first: int
    length: int
    distance: float = Field(description="mean angle / pi between the streams before and after, in [0, 1]")


class Removal(Part):
    """One step of the greedy order (SLEB): the block whose loss hurts least, and the loss without it."""

    block: int
    validation_loss: float


class Depth(Part):
    """Quality of a body that keeps some of its blocks, on the validation part."""

    blocks: int
    kept: list[int] = Field(description="numbers of the blocks that are left, ascending")
    retrained: bool = Field(description="False: cut only, final norm applied; True: trained again after it")
    quality: dict[str, float] = Field(description="validation metrics")
    body_parameters: int
    seconds_per_epoch: float | None = Field(None, description="of the training after the cut")
    order: str | None = Field(
        None, description="what chose `kept`: first, block-influence, angular, greedy or uniform"
    )
    init: str | None = Field(
        None,
        description="retrained: what the training started from, as in prune-depth (teacher, base, fresh)",
    )


class DepthProfile(Part):
    """Everything that was measured of one body."""

    of: str = Field(description="the checkpoint that was profiled")
    blocks: int
    users: int = Field(description="users whose training histories were looked at")
    seed: int
    block_influence: list[float] = Field(description="per block, 1 - mean cosine (ShortGPT)")
    cuts: list[Cut]
    greedy: list[Removal] = Field(description="in the order of removal")
    validation_loss: float = Field(description="cross-entropy with all blocks, what `greedy` starts from")
    depths: list[Depth]
    validation_users: int | None = Field(None, description="users that `depths` were measured on")
    catalogue_digest: str | None = Field(
        None, description="of the data set, to refuse the profile of another"
    )

"""How a model is trained; shared by the stages `train` and `distill`."""

from typing import Literal

from pydantic import Field

from recommender.data.config import Section


class TrainSettings(Section):
    """Options of the training loop; flat, because the stages that train inherit them."""

    epochs: int = Field(20, ge=1, description="passes over the users")
    batch_size: int = Field(256, ge=1, description="users per optimizer step, over all processes")
    micro_batch_tokens: int = Field(
        4096,
        ge=1,
        description="most padded positions per forward pass (memory); a step is cut into length-sorted "
        "pieces, smaller ones where that saves more padding than another call costs",
    )
    positions: Literal["all", "last"] = Field(
        "all", description="train on every position of a history, or on its last one only (SLMRec)"
    )
    loss: Literal["full-softmax", "sampled-softmax", "gbce"] = Field(
        "full-softmax",
        description="cross-entropy over the catalogue, over shared negatives, or gSASRec's gBCE",
    )
    negatives: int = Field(
        256, ge=1, description="negatives of sampled-softmax (shared) and gbce (per position)"
    )
    gbce_t: float = Field(0.75, ge=0, le=1, description="calibration of gbce; 0 is plain BCE")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="adamw (betas .9, .98) or plain sgd")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="after the warm-up; cosine falls to 0"
    )
    warmup_steps: int = Field(100, ge=0, description="steps of linear warm-up; at most a tenth of the run")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay, on matrices of the body only")
    max_grad_norm: float | None = Field(1.0, gt=0, description="gradient clipping; null: off")
    patience: int | None = Field(
        5, ge=1, description="stop after so many validations without a better NDCG@10; null: never"
    )
    validate_every: int = Field(1, ge=1, description="epochs between validations")
    validation_users: int | None = Field(None, ge=1, description="validate on a sample of users; null: all")
    precision: Literal["auto", "fp32", "bf16", "fp64"] = Field(
        "auto",
        description="auto: bf16 on a GPU, fp32 on a CPU (where bf16 is slower); losses are fp32 at least",
    )
    compile: bool = Field(False, description="torch.compile the training step")
    max_steps: int | None = Field(
        None, ge=1, description="stop after so many optimizer steps; null: all epochs"
    )
    save_every_seconds: float = Field(60, ge=0, description="how often the state to resume from is written")

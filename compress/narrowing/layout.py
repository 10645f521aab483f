"""Where the widths of a decoder show in its weights, family by family: plain data, read without torch.

A block has four structures whose members can be removed: channels of the stream (`hidden`), neurons of the
feed-forward (`ffn`), attention heads (`heads`), and heads of keys and values (`kv`). An axis of a matrix says
which structure lies along it, and how.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from recommender.files import read_json
from recommender.models.config import HEADS_FILL_HIDDEN, LlmConfig, heads_problem

Structure = Literal["hidden", "ffn", "heads", "kv"]
Axis = Literal["hidden", "ffn", "gate+up", "heads", "kv", "q+k+v", "qkv by head"]
"""`gate+up`: the neurons twice; `q+k+v`: all queries, then all keys, then all values; `qkv by head`: query,
key and value of the first head, then of the second."""


class Widths(NamedTuple):
    """The sizes of a block."""

    hidden: int
    heads: int
    kv_heads: int  # divides heads; each of them serves heads / kv_heads heads
    head_dim: int
    ffn: int


@dataclass(frozen=True)
class Layout:
    """One family's blocks."""

    matrices: Mapping[str, tuple[Axis, Axis]]  # name below the block -> (along its outputs, its inputs)
    norms: tuple[str, ...]  # of the stream; norms of single heads are not listed, as no head is cut open
    ffn_entry: str = "intermediate_size"  # of the Hugging Face config

    def reading(self, axis: Axis) -> str:
        """The matrix whose inputs lie along this axis: `heads` the way out of attention, `ffn` down."""
        (found,) = [name for name, (_, inputs) in self.matrices.items() if inputs == axis]
        return found


_ATTENTION: dict[str, tuple[Axis, Axis]] = {
    "self_attn.q_proj": ("heads", "hidden"),
    "self_attn.k_proj": ("kv", "hidden"),
    "self_attn.v_proj": ("kv", "hidden"),
    "self_attn.o_proj": ("hidden", "heads"),
}
_GATED: dict[str, tuple[Axis, Axis]] = {
    "mlp.gate_proj": ("ffn", "hidden"),
    "mlp.up_proj": ("ffn", "hidden"),
    "mlp.down_proj": ("hidden", "ffn"),
}
_TWO_NORMS = ("input_layernorm", "post_attention_layernorm")
_LLAMA = Layout({**_ATTENTION, **_GATED}, _TWO_NORMS)
_GEMMA2 = Layout(
    {**_ATTENTION, **_GATED}, (*_TWO_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")
)

LAYOUTS: Mapping[str, Layout] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
    "phi3": Layout(
        {
            "self_attn.qkv_proj": ("q+k+v", "hidden"),
            "self_attn.o_proj": ("hidden", "heads"),
            "mlp.gate_up_proj": ("gate+up", "hidden"),
            "mlp.down_proj": ("hidden", "ffn"),
        },
        _TWO_NORMS,
    ),
    "gpt2": Layout(
        {
            "attn.c_attn": ("q+k+v", "hidden"),
            "attn.c_proj": ("hidden", "heads"),
            "mlp.c_fc": ("ffn", "hidden"),
            "mlp.c_proj": ("hidden", "ffn"),
        },
        ("ln_1", "ln_2"),
        "n_inner",
    ),
    "opt": Layout(
        {
            "self_attn.q_proj": ("heads", "hidden"),
            "self_attn.k_proj": ("kv", "hidden"),
            "self_attn.v_proj": ("kv", "hidden"),
            "self_attn.out_proj": ("hidden", "heads"),
            "fc1": ("ffn", "hidden"),
            "fc2": ("hidden", "ffn"),
        },
        ("self_attn_layer_norm", "final_layer_norm"),
        "ffn_dim",
    ),
    "gpt_neox": Layout(
        {
            "attention.query_key_value": ("qkv by head", "hidden"),
            "attention.dense": ("hidden", "heads"),
            "mlp.dense_h_to_4h": ("ffn", "hidden"),
            "mlp.dense_4h_to_h": ("hidden", "ffn"),
        },
        _TWO_NORMS,
    ),
}
"""By the `model_type` of a Hugging Face config: every family that can be narrowed."""


def family_problem(model_type: str) -> str | None:
    """What is said of a family that cannot be narrowed, or None."""
    known = ", ".join(LAYOUTS)
    if model_type in LAYOUTS:
        return None
    return f"a body of the family {model_type!r} cannot be cut in width; families that can: {known}"


def family_of(config: LlmConfig) -> str | None:
    """The family of a body, as far as it can be told before it is loaded: a name says nothing, a folder does.

    Raises InputError where the config in a folder is no JSON.
    """
    if config.backbone is None:
        return str(config.family)
    file = Path(config.backbone) / "config.json"
    entries = read_json(file) if file.is_file() else None
    found = entries.get("model_type") if isinstance(entries, dict) else None
    return found if isinstance(found, str) else None


def widths_of(config: LlmConfig) -> Widths | None:
    """The widths of a body built from sizes; None with a `backbone`, whose own config tells them."""
    if config.backbone is not None:
        return None
    shared = config.family not in HEADS_FILL_HIDDEN  # the others have no keys and values that heads share
    kv_heads = (config.kv_heads if shared else None) or config.heads
    return Widths(config.hidden, config.heads, kv_heads, config.head_size, config.ffn or 3 * config.hidden)


def with_widths(config: LlmConfig, widths: Widths) -> LlmConfig:
    """The config of the same model with other widths."""
    plain = widths.heads * widths.head_dim == widths.hidden
    return config.model_copy(
        update={
            "hidden": widths.hidden,
            "heads": widths.heads,
            "kv_heads": None if widths.kv_heads == widths.heads else widths.kv_heads,
            "head_dim": None if plain else widths.head_dim,
            "ffn": widths.ffn,
        }
    )


Amount = int | float
"""How many stay: a number, or a share between 0 and 1 (rounded down)."""


def aimed_at(before: Widths, targets: Mapping[str, Amount]) -> Widths:
    """The widths that `targets` (hidden, heads, kv_heads, ffn) ask for; what is not named stays.

    Key/value heads that serve one head each go with it. Those that are shared all stay, unless `kv_heads`
    says otherwise; with it alone they keep all heads that they serve.
    """
    wanted = {
        name: amount if isinstance(amount, int) else int(amount * getattr(before, name) + 1e-9)
        for name, amount in targets.items()
    }
    if "kv_heads" in wanted:
        wanted.setdefault("heads", wanted["kv_heads"] * (before.heads // before.kv_heads))
    elif "heads" in wanted and before.heads == before.kv_heads:
        wanted["kv_heads"] = wanted["heads"]
    return before._replace(**wanted)


def targets_problem(before: Widths, after: Widths, family: str) -> tuple[str, str] | None:
    """(structure, what is wrong) with cutting `before` to `after`, or None; a KV head serves the same number
    of heads everywhere.
    """
    for name in ("hidden", "heads", "kv_heads", "ffn"):
        have, want = getattr(before, name), getattr(after, name)
        if not 1 <= want <= have:
            return name, f"cannot keep {want}: there are {have}"
    for name in ("hidden", "ffn"):
        if getattr(after, name) < SMALLEST:
            return name, f"{getattr(after, name)} is too narrow: keep {SMALLEST} at least"
    if after.heads % after.kv_heads:
        return "heads", f"{after.heads} heads cannot be shared equally by {after.kv_heads} key/value heads"
    if after.heads // after.kv_heads > before.heads // before.kv_heads:
        most = before.heads // before.kv_heads * after.kv_heads
        return "heads", f"{after.kv_heads} key/value heads serve {most} heads at most, not {after.heads}"
    sizes = {"hidden": after.hidden, "heads": after.heads, "head_dim": after.head_dim}
    if wrong := heads_problem(family, **sizes):
        return ("hidden" if after.hidden != before.hidden else "heads"), wrong
    return None


SMALLEST = 8
"""Channels and neurons that a `model:` section allows at least."""

"""A Hugging Face decoder over item vectors, as E4SRec and SLMRec train it, or a bare one to train further."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from recommender.data.prepared import Prepared
from recommender.errors import InputError
from recommender.files import read_json
from recommender.incoming.items import Alignment, Missing, gather
from recommender.incoming.tensors import PICKLED, check_names, check_shapes, read_tensors
from recommender.incoming.vectors import match_vectors, read_vectors
from recommender.models.config import LlmConfig
from recommender.models.hf_body import HuggingFaceBody, drop_word_embeddings
from recommender.models.llm import LlmRecommender

Projections = Path | Literal["identity"] | None

HEADS = ("lm_head.", "score.", "embed_out.", "v_head.")
"""Output layers of language models and classifiers, which a folder may hold and nobody reads here."""

INPUT, BIAS, OUTPUT = "input_proj.weight", "input_proj.bias", "score.weight"
"""Names of the projections in the state dicts of E4SRec and SLMRec."""

FORM = "give a folder that save_pretrained has written: config.json and *.safetensors"


class ImportedDecoder(NamedTuple):
    """The model, and which items it knew."""

    model: LlmRecommender
    items: Alignment


def import_decoder(
    config: LlmConfig,
    prepared: Prepared,
    *,
    vectors: Path,
    tensor: str | None,
    items: Path | None,
    projections: Projections,
    max_length: int,
    missing: Missing,
    seed: int,
) -> ImportedDecoder:
    """The recommender whose body lies in the folder `config.backbone`; `config` says what goes around it.

    `projections`: a file, `identity` (the item vectors are the decoder's own embeddings), or None (fresh
    ones, drawn from `seed`, to be trained). Raises InputError for a folder that is no decoder, for sizes that
    do not fit, NaN, and ids that do not match.
    """
    folder = Path(config.backbone or "")
    table = read_vectors(vectors, tensor)
    aligned = match_vectors(table, vectors, items, prepared, missing=missing)
    backbone = load_decoder(folder)
    prefix, suffix = (embed_prompt(backbone, folder, text) for text in (config.prefix, config.suffix))
    _check_window(backbone, max_length + len(prefix) + len(suffix), max_length, folder)
    drop_word_embeddings(backbone)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlmRecommender(
            HuggingFaceBody(backbone, dropout=config.dropout),
            item_vectors=gather(table.table, aligned, missing=missing, seed=seed),
            train_items=config.item_vectors == "trained",
            max_length=max_length,
            dropout=config.dropout,
            prefix=prefix,
            suffix=suffix,
            fixed_slots=config.fixed_slots,
        )
    _check_causal(model.body, folder)
    _fill_projections(model, projections)
    return ImportedDecoder(model.eval(), aligned)


def load_decoder(folder: Path) -> PreTrainedModel:
    """Load a decoder in fp32 from its safetensors. Raises InputError unless all of it is there and finite."""
    _check_folder(folder)
    try:
        backbone, report = AutoModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True,
            trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        raise InputError(
            f"transformers cannot load it: {_first_line(error)}", where=str(folder), fix=FORM
        ) from error
    wrong = [
        f"{what}: {', '.join(sorted(map(str, names))[:5])}"
        for what, names in (
            ("weights are missing", report["missing_keys"]),
            ("weights of another size", report["mismatched_keys"]),
            ("weights of something else", {k for k in report["unexpected_keys"] if not k.startswith(HEADS)}),
        )
        if names
    ]
    if wrong:  # transformers fills gaps with random numbers and goes on
        raise InputError("; ".join(wrong), where=str(folder), fix=FORM)
    for name, weight in backbone.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise InputError(
                f"{name} holds values that are NaN or infinite",
                where=str(folder),
                fix="take an earlier state of the training: this one has diverged",
            )
    body: PreTrainedModel = backbone
    return body


def embed_prompt(backbone: PreTrainedModel, folder: Path, text: str) -> Tensor:
    """A prompt [P, H] by the folder's own tokenizer and word embeddings, without special tokens."""
    words = backbone.get_input_embeddings()
    assert isinstance(words, nn.Embedding)
    if not text:
        return torch.zeros(0, words.embedding_dim)
    try:
        tokens = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)(
            text, add_special_tokens=False
        )["input_ids"]
    except (OSError, ValueError, ImportError) as error:
        raise InputError(
            f"a prompt needs the tokenizer, which cannot be loaded: {_first_line(error)}",
            where=str(folder),
            fix="save the tokenizer beside the decoder, or leave prefix and suffix out",
        ) from error
    with torch.no_grad():
        embedded: Tensor = words(torch.tensor(tokens))
    return embedded.detach().clone()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _check_folder(folder: Path) -> None:
    """Raise InputError for what can be told from the folder's files alone."""
    if not folder.is_dir():
        raise InputError("no such folder of a decoder", where=str(folder), fix=FORM)
    names = sorted(path.name for path in folder.iterdir())
    if "adapter_config.json" in names:
        raise InputError(
            "holds an adapter (peft), not a whole decoder",
            where=str(folder),
            fix="merge it: PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(new)",
        )
    if "config.json" not in names:
        raise InputError("holds no config.json", where=str(folder), fix=FORM)
    if not any(name.endswith(".safetensors") for name in names):
        pickled = [name for name in names if name.endswith(PICKLED)]
        raise InputError(
            f"holds pickled weights ({pickled[0]}), which are never loaded here: unpickling can run any code"
            if pickled
            else "holds no weights (*.safetensors)",
            where=str(folder),
            fix="where you trust them: AutoModel.from_pretrained(folder).save_pretrained(new_folder)"
            if pickled
            else FORM,
        )
    settings: Any = read_json(folder / "config.json")
    if not isinstance(settings, Mapping) or "model_type" not in settings:
        raise InputError("is no config of a Hugging Face model", where=str(folder / "config.json"), fix=FORM)
    if settings.get("quantization_config"):
        raise InputError(
            "the weights are quantized", where=str(folder), fix="dequantize them: model.dequantize()"
        )
    if settings.get("is_encoder_decoder"):
        raise InputError("is an encoder with a decoder, not a decoder alone", where=str(folder))


def _check_window(backbone: PreTrainedModel, needed: int, max_length: int, folder: Path) -> None:
    reads = getattr(backbone.config, "max_position_embeddings", None)
    if isinstance(reads, int) and reads < needed:
        prompts = f" with prompts of {needed - max_length} tokens" if needed > max_length else ""
        raise InputError(
            f"it has {reads} positions, but {needed} are needed: data.max_length is {max_length}{prompts}",
            where=str(folder),
            fix=f"set data.max_length to {reads - (needed - max_length)} or less"
            if reads > needed - max_length
            else "shorten the prompts",
        )


def _check_causal(body: HuggingFaceBody, folder: Path) -> None:
    """Raise InputError when an early state depends on a later input, as in BERT."""
    body.eval()
    width = body.config.hidden_size
    embeds = torch.randn(1, 6, width, generator=torch.Generator().manual_seed(0))
    other = torch.cat((embeds[:, :-1], -9 * embeds[:, :1]), dim=1)
    mask = torch.ones(1, 6, dtype=torch.long)
    try:
        with torch.no_grad():
            one, two = (body(each, mask, watch=False).final for each in (embeds, other))
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise InputError(
            f"cannot be run on item vectors: {_first_line(error)}",
            where=str(folder),
            fix="give a decoder whose forward takes inputs_embeds",
        ) from error
    if not torch.allclose(one[:, :-1], two[:, :-1], atol=1e-6):
        raise InputError(
            f"is no decoder: early states of a {body.config.model_type} depend on later items",
            where=str(folder),
            fix="give a causal language model (llama, qwen, gemma, gpt2, ...)",
        )


def _fill_projections(model: LlmRecommender, projections: Projections) -> None:
    into, back = model.input_projection, model.output_projection
    if projections is None:
        return
    hidden, width = into.weight.shape
    with torch.no_grad():
        if projections == "identity":
            if hidden != width:
                raise InputError(
                    f"identity: item vectors are {width} wide, the decoder {hidden}",
                    where="import.projections",
                    fix="give the file of the projections, or leave them out to train fresh ones",
                )
            into.weight.copy_(torch.eye(width))
            back.weight.copy_(torch.eye(width))
            return
        assert isinstance(projections, Path)
        weights = read_tensors(projections)
        names = {INPUT, OUTPUT, BIAS} if BIAS in weights else {INPUT, OUTPUT}
        check_names(weights, names, projections, fix=f"it holds {INPUT}, {BIAS} (optional) and {OUTPUT}")
        shapes = {INPUT: (hidden, width), BIAS: (hidden,), OUTPUT: (width, hidden)}
        check_shapes(weights, {name: shapes[name] for name in names}, projections)
        into.weight.copy_(weights[INPUT])
        into.bias.copy_(weights.get(BIAS, torch.zeros(hidden)))
        back.weight.copy_(weights[OUTPUT])

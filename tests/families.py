"""Tiny random models of many architectures and their tokenizers; every dropout is on, to be seen if it acts."""

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from ptuning.model import Backbone

WORDS = [
    "a",
    "good",
    "bad",
    "film",
    "plot",
    "was",
    "very",
    "dull",
    "and",
    "bright",
    "the",
    "capital",
    "of",
    "is",
    "in",
    "review",
    "sentiment",
    "positive",
    "negative",
]
WINDOW = 6  # of those that look back a little only: shorter than some prompts
_SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
NUM_POSITIONS = 96  # of those that look positions up in a table
_DROPS = {**_SIZE, "attention_dropout": 0.3}
_GROUPED = {**_DROPS, "num_key_value_heads": 2}
_HEADS = {**_GROUPED, "head_dim": 8}
_EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4}
ATTENTION: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "mistral": {**_HEADS, "sliding_window": WINDOW},
    "qwen2": _GROUPED,
    "qwen3": _HEADS,
    "gemma2": {**_HEADS, "sliding_window": WINDOW},
    "gemma3_text": {**_HEADS, "num_hidden_layers": 3, "sliding_window": WINDOW,
                    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": NUM_POSITIONS},
    "opt": {**_DROPS, "dropout": 0.3, "ffn_dim": 48, "word_embed_proj_dim": 32,
            "max_position_embeddings": NUM_POSITIONS},
    "gpt_neox": {**_SIZE, "attention_dropout": 0.3, "hidden_dropout": 0.3},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "hidden_dropout": 0.3, "attention_dropout": 0.3},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": NUM_POSITIONS},
    "phi3": {**_GROUPED, "resid_pdrop": 0.3, "embd_pdrop": 0.3},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_dropout": 0.3},
    "granite": {**_GROUPED, "embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.7,
                "attention_multiplier": 0.3},
    "gpt_oss": {**_HEADS, **_EXPERTS, "sliding_window": WINDOW},
    "mixtral": {**_GROUPED, **_EXPERTS},
    "deepseek_v3": {**_DROPS, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
                    "v_head_dim": 8, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
                    "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1},
}  # fmt: skip
OTHER_STATE: dict[str, dict[str, Any]] = {  # what is not attention alone, where the fast path must step aside
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "state_size": 4},
    "lfm2": {**_SIZE, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]},
    "qwen3_next": {**_HEADS, "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
                   "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
                   "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
                   "shared_expert_intermediate_size": 16},
}  # fmt: skip
ENCODER_DECODER: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.3,
           "decoder_start_token_id": 2},
}  # fmt: skip
FAMILIES = ATTENTION | OTHER_STATE | ENCODER_DECODER


SPACE_MARK = "\u2581"  # SentencePiece's
PREFIX_SPACE = ("byte-level-prefix", "prepend", "byte-fallback", "metaspace-always", "metaspace-first", "unigram")
TOKENIZERS = ("byte-level", "metaspace-never", *PREFIX_SPACE)


def tiny_tokenizer(frame: str = "<s> $A", kind: str = "byte-level") -> PreTrainedTokenizerFast:
    """A tokenizer with a few words, begin-of-text and end-of-text tokens, and a chat template.

    Args:
        frame: What stands around a text: a begin-of-text token, an encoder's end-of-text token, or both.
        kind: One of `TOKENIZERS`; those of `PREFIX_SPACE` put a space or its mark before a text. byte-level: GPT-2's;
            prepend: Llama 2's, with one unknown token for all other characters; byte-fallback: Llama 2's, with bytes
            for them; metaspace: a SentencePiece model's with a pre-tokenizer; unigram: T5's.
    """
    tokenizer = _byte_level(kind) if kind.startswith("byte-level") else _with_space_mark(kind)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single=frame, special_tokens=ids)
    unknown = {"unk_token": "<unk>"} if tokenizer.token_to_id("<unk>") is not None else {}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", **unknown
    )
    fast.chat_template = (
        "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant:{% endif %}"
    )
    return fast


def _byte_level(kind: str) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(**_merged(["<s>", "</s>", "<pad>", *alphabet], "\u0120")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind == "byte-level-prefix")
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _with_space_mark(kind: str) -> Tokenizer:
    characters = [chr(i) for i in range(33, 127)]
    special = ["<s>", "</s>", "<pad>", "<unk>"]
    if kind == "unigram":
        scores = dict.fromkeys([*special, SPACE_MARK, *characters], -10.0)
        scores |= {f"{SPACE_MARK}{word}": -2.0 for word in WORDS}
        tokenizer = Tokenizer(models.Unigram(list(scores.items()), unk_id=3))
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(left=False)])
        marks = pre_tokenizers.Metaspace(prepend_scheme="always")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), marks])
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
        return tokenizer
    bytes_ = [] if kind == "prepend" else [f"<0x{i:02X}>" for i in range(256)]
    merged = _merged([*special, *bytes_, SPACE_MARK, *characters], SPACE_MARK)
    tokenizer = Tokenizer(models.BPE(**merged, unk_token="<unk>", fuse_unk=True, byte_fallback=bool(bytes_)))
    if kind.startswith("metaspace"):
        scheme = kind.removeprefix("metaspace-")
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    else:
        marks = [normalizers.Prepend(SPACE_MARK), normalizers.Replace(" ", SPACE_MARK)]
        tokenizer.normalizer = normalizers.Sequence(marks)
    first = [] if kind == "metaspace-never" else [decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse(), *first]
    )
    return tokenizer


def _merged(tokens: list[str], space: str) -> dict[str, Any]:
    """The vocabulary and the merges that make a token of each word behind a space."""
    merges: list[tuple[str, str]] = []
    vocabulary = {token: i for i, token in enumerate(tokens)}
    for word in WORDS:
        pieces = list(f"{space}{word}")
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            if "".join(pair) not in vocabulary:
                merges.append(pair)
                vocabulary["".join(pair)] = len(vocabulary)
            pieces = ["".join(pair), *pieces[2:]]
    return {"vocab": vocabulary, "merges": merges}


def tiny_model(family: str, seed: int = 0, std: float = 0.2, **changes: object) -> tuple[Any, PreTrainedTokenizerFast]:
    """A tiny random model of a family; by default with weights so large that rows differ clearly."""
    is_pair = family in ENCODER_DECODER
    tokenizer = tiny_tokenizer("$A </s>" if is_pair else "<s> $A")
    ids = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = CONFIG_MAPPING[family](**{**FAMILIES[family], **ids, **changes})
    torch.manual_seed(seed)
    model = (AutoModelForSeq2SeqLM if is_pair else AutoModelForCausalLM).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=std)
    return model, tokenizer


def tiny_backbone(family: str = "llama", seed: int = 0, **options: Any) -> Backbone:
    """The same as a backbone; arguments as in `tiny_model`."""
    return Backbone.of(*tiny_model(family, seed, **options), f"tiny-{family}")

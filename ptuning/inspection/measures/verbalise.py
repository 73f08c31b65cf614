"""The model's own words for a prompt, written from its hidden states, always beside prompts that mean nothing.

The virtual tokens' states at one layer replace those of filler words in a question at another layer (patchscopes,
Ghandeharioun et al. 2024; for soft prompts InSPEcT, Ramati et al. 2024). The pair of layers is fixed beforehand: the
best of hundreds of pairs would be the reader's choice, not the prompt's words. Knows nothing of tasks.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ptuning.data import RunningText, Stretch, frame_ids
from ptuning.errors import ModelError, PromptError
from ptuning.evaluation import Table
from ptuning.forward import place
from ptuning.inspection.measures.protocol import Measured
from ptuning.inspection.vocabulary.embeddings import Vocabulary
from ptuning.inspection.vocabulary.nulls import Nulls
from ptuning.inspection.vocabulary.origin import untrained
from ptuning.model import Backbone, CausalBackbone
from ptuning.model.kernels import decoder_layers
from ptuning.prompts import SoftPrompt

NAME = "verbalise"
_BEFORE, _FILLER, _AFTER = "Here is an instruction:", " x", "\nIn other words, the instruction asks to"
SOFT, UNTRAINED, RANDOM = "soft prompt", "untrained", "random directions of the same norms"
COLUMNS = {
    "prompt": "the prompt whose states were read: the soft prompt or a control",
    "text": "what the model wrote",
    "shared": "share of its words that the soft prompt's text has too; where it is as high for the controls, the text "
    "is the model's habit",
    "source_layer": "the layer whose input the states are",
    "target_layer": "the layer that received them as input",
}
HOW = (
    "What the model writes when it is asked to put the prompt into words, and what it writes for controls that say "
    "nothing. Where the controls' texts are much the same, the text is the model's habit."
)


@torch.no_grad()
def verbalise(
    prompt: SoftPrompt,
    backbone: Backbone,
    others: Mapping[str, SoftPrompt] | None = None,
    layers: tuple[int, int] | None = None,
    max_new_tokens: int = 24,
    seed: int = 0,
) -> Measured:
    """Asks the model what a prompt says, and what meaningless prompts say.

    Args:
        prompt: The prompt; of a conditioned prompt its base is used.
        backbone: The base model.
        others: Name -> prompt of another task, as a further control.
        layers: Source and target layer, fixed beforehand or chosen on other prompts; None: for both the layer a third
            of the way up.
        max_new_tokens: Tokens that the model may write.
        seed: Seed of the random control.

    Returns:
        A table with a record for each prompt, the soft prompt first; `COLUMNS` says what it holds.

    Raises:
        ModelError: When the model's layers cannot be reached.
        PromptError: When the model does not have these layers.
    """
    backbone = backbone.twin()  # its layers are hooked below
    found = require_layers(backbone)
    source, target = layers or (len(found) // 3, len(found) // 3)
    if not (0 <= source < len(found) and 0 <= target < len(found)):
        raise PromptError(f"layers={(source, target)}", f"two of the model's {len(found)}, from 0", "Correct them")
    asked = _prompts(prompt, backbone, others or {}, seed)
    texts = {name: _said(each, backbone, found[target], source, max_new_tokens) for name, each in asked.items()}
    own = set(texts[SOFT].lower().split())
    records = []
    for name, text in texts.items():
        words = text.lower().split()
        shared = sum(word in own for word in words) / len(words) if words else 0.0
        records.append({"prompt": name, "text": text, "shared": shared, "source_layer": source, "target_layer": target})
    return Measured(name=NAME, title="In the model's words", how=HOW, table=Table(COLUMNS, records))


def require_layers(backbone: Backbone) -> Any:
    """The model's layers from the first to the last; raises `ModelError` when they cannot be reached."""
    found = decoder_layers(backbone.model) if isinstance(backbone, CausalBackbone) else None
    if found is None:
        raise ModelError(f"verbalise with {backbone.name}", "a causal model with one stack of layers", "Leave it out")
    return found


def _prompts(prompt: SoftPrompt, backbone: Backbone, others: Mapping[str, SoftPrompt], seed: int) -> dict[str, Tensor]:
    """Name -> the prompt `[P, H]`, its controls and the others."""
    vocabulary = Vocabulary.of(backbone)
    own_PH, start_PH = prompt.embeddings_PH.to(backbone.device), untrained(prompt, backbone, vocabulary)
    nulls = Nulls(vocabulary, own_PH, [None] * len(own_PH), len(own_PH), seed)
    found = {SOFT: own_PH} | ({} if start_PH is None else {UNTRAINED: start_PH})
    found[RANDOM] = torch.cat([nulls.directions(p)[p : p + 1] for p in range(len(own_PH))])
    return found | {f"other task: {name}": each.embeddings_PH.to(backbone.device) for name, each in others.items()}


def _said(prompt_PH: Tensor, backbone: Backbone, layer: Any, source: int, max_new_tokens: int) -> str:
    """What the model writes when a prompt's states replace those of the filler words."""
    ids_1P = torch.arange(-1, -1 - len(prompt_PH), -1, device=backbone.device)[None]
    run = backbone.model(inputs_embeds=place(backbone, prompt_PH, ids_1P), output_hidden_states=True, use_cache=False)
    states_1PH = run.hidden_states[source]
    stretches = [Stretch(_BEFORE, None), Stretch(_FILLER, _BEFORE), Stretch(_AFTER, _BEFORE + _FILLER)]
    before, filler, after = RunningText(backbone.tokenizer).ids(stretches)
    before = [*frame_ids(backbone.tokenizer)[0], *before]
    first, last = len(before), len(before) + len(prompt_PH)

    def put(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        inputs_1TH = arguments[0] if arguments else named["hidden_states"]
        if inputs_1TH.shape[1] < last:  # a new token: the question has already been read
            return None
        inputs_1TH = torch.cat([inputs_1TH[:, :first], states_1PH, inputs_1TH[:, last:]], dim=1)
        return (
            ((inputs_1TH, *arguments[1:]), named) if arguments else (arguments, named | {"hidden_states": inputs_1TH})
        )

    ids_1T = torch.tensor([[*before, *(filler[-1:] * len(prompt_PH)), *after]], device=backbone.device)
    hook = layer.register_forward_pre_hook(put, with_kwargs=True)
    try:
        written_1N = backbone.model.generate(
            ids_1T, attention_mask=torch.ones_like(ids_1T), max_new_tokens=max_new_tokens, do_sample=False,
            pad_token_id=backbone.pad_id,
        )  # fmt: skip
    finally:
        hook.remove()
    return str(backbone.tokenizer.decode(written_1N[0, ids_1T.shape[1] :], skip_special_tokens=True)).strip()

"""One pass over lines: `splice`'s numbers on every family, few shapes, and nothing that waits for a device."""

import dataclasses
import itertools

import pytest
import torch
from conftest import ASSETS
from families import ATTENTION, OTHER_STATE, tiny_backbone
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer

from ptuning.data.batches import Batch
from ptuning.data.coder import Coder
from ptuning.data.examples import Example, prefix_ids
from ptuning.data.readers import read_rows
from ptuning.data.sampling import BatchStream
from ptuning.data.task import Task
from ptuning.forward import line_pass
from ptuning.forward.batch_prompt import PromptPerRow, StaticPrompt
from ptuning.forward.line_pass import lay_out, loss_and_gradient, whole_rows
from ptuning.forward.lines import Lines
from ptuning.forward.packing import Sizes
from ptuning.forward.splice import splice
from ptuning.model import Backbone, CausalBackbone
from ptuning.training.graphs import DeviceReads

P = 4
EXACT, ROUNDED = Sizes(), Sizes(are_rounded=True)


def batch_of(backbone: Backbone, lengths: tuple[int, ...] = (3, 12, 1, 7), num_answer: int = 2) -> Batch:
    """Rows with a slot of P, two words, text, and answers of 1 to `num_answer` tokens."""
    numbers = itertools.cycle(range(5, 200))
    slot = range(-1, -1 - P, -1)
    rows = [
        Example([*slot, 7, 8, *(next(numbers) for _ in range(n))], [next(numbers) for _ in range(1 + i % num_answer)])
        for i, n in enumerate(lengths)
    ]
    return backbone.collate(rows)


def prompt_of(backbone: Backbone, *size: int) -> Tensor:
    chance = torch.Generator().manual_seed(0)
    return torch.randn(*size, P, backbone.width, generator=chance) * backbone.vocabulary_VH.std()


def expected_of(backbone: Backbone, prompt: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """The loss and the gradient of the reference path."""
    leaf = prompt.clone().requires_grad_()
    loss = functional.cross_entropy(splice(backbone, leaf, batch), batch.targets_N, reduction="sum")
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def assert_same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    assert expected[1].norm() > 1e-4
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    assert (found[1] - expected[1]).norm() < 1e-5 * expected[1].norm()


@pytest.mark.parametrize("sizes", [EXACT, ROUNDED], ids=["exact", "padded"])
@pytest.mark.parametrize("family", sorted(ATTENTION))
def test_packed_lines_equal_splice(family: str, sizes: Sizes) -> None:
    backbone = tiny_backbone(family)
    assert isinstance(backbone, CausalBackbone)
    batch, prompt_PH = batch_of(backbone), prompt_of(backbone)
    lines = line_pass._packed(backbone, StaticPrompt(prompt_PH), batch, sizes)
    is_possible = backbone.supports_joint_prefix and backbone.window is None
    assert (lines is not None) == is_possible
    if lines is not None:
        assert lines.shape.num_prefix == P + 2
        assert lines.shape.num_lines < len(batch) or sizes is ROUNDED
        assert_same(loss_and_gradient(backbone, prompt_PH, lines), expected_of(backbone, prompt_PH, batch))


@pytest.mark.parametrize("sizes", [EXACT, ROUNDED], ids=["exact", "padded"])
@pytest.mark.parametrize("family", sorted(ATTENTION | OTHER_STATE))
@pytest.mark.parametrize("is_one_prompt", [True, False])
def test_whole_rows_without_a_mask_equal_splice(family: str, sizes: Sizes, is_one_prompt: bool) -> None:
    backbone = tiny_backbone(family)
    assert isinstance(backbone, CausalBackbone)
    batch = batch_of(backbone)
    prompt = prompt_of(backbone) if is_one_prompt else prompt_of(backbone, len(batch))
    lines = whole_rows(backbone, StaticPrompt(prompt) if is_one_prompt else PromptPerRow(prompt), batch, sizes)
    assert lines is not None
    assert lines.shape.is_plain
    assert_same(loss_and_gradient(backbone, prompt, lines), expected_of(backbone, prompt, batch))


def test_rounded_rows_stay_within_the_models_positions() -> None:
    backbone = tiny_backbone("gpt2", n_positions=40)
    assert isinstance(backbone, CausalBackbone)
    batch, prompt_PH = batch_of(backbone, (20, 27), num_answer=1), prompt_of(backbone)
    lines = whole_rows(backbone, StaticPrompt(prompt_PH), batch, ROUNDED)
    assert lines is not None
    assert lines.shape.width == 40 < ROUNDED.width(33)
    assert_same(loss_and_gradient(backbone, prompt_PH, lines), expected_of(backbone, prompt_PH, batch))


def test_some_families_pack() -> None:
    packing = [family for family in ATTENTION if tiny_backbone(family).supports_joint_prefix]
    assert {"llama", "qwen2", "qwen3", "gpt2", "opt", "phi3", "granite", "mixtral"} <= set(packing)


def on_meta(backbone: Backbone) -> CausalBackbone:
    """The same model without numbers."""
    found = Backbone.of(backbone.model.to("meta"), backbone.tokenizer, backbone.name)
    assert isinstance(found, CausalBackbone)
    return found


@pytest.mark.parametrize("is_plain", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gpt_neox", "phi3"])
def test_the_pass_needs_no_numbers(family: str, is_plain: bool) -> None:
    backbone = tiny_backbone(family)
    assert isinstance(backbone, CausalBackbone)
    batch, prompt_PH = batch_of(backbone), prompt_of(backbone)
    make = whole_rows if is_plain else line_pass._packed
    lines = make(backbone, StaticPrompt(prompt_PH), batch, ROUNDED)
    assert lines is not None
    loss, gradient_PH = loss_and_gradient(on_meta(backbone), prompt_PH.to("meta"), lines.to(torch.device("meta")))
    assert (loss.shape, gradient_PH.shape) == ((), prompt_PH.shape)
    assert loss.is_meta
    assert gradient_PH.is_meta


@pytest.mark.parametrize("sizes", [EXACT, ROUNDED], ids=["exact", "padded"])
@pytest.mark.parametrize("is_plain", [False, True])
def test_the_pass_reads_nothing_from_the_device(is_plain: bool, sizes: Sizes) -> None:
    backbone = tiny_backbone("llama")
    assert isinstance(backbone, CausalBackbone)
    batch, prompt_PH = batch_of(backbone), prompt_of(backbone)
    make = whole_rows if is_plain else line_pass._packed
    lines = make(backbone, StaticPrompt(prompt_PH), batch, sizes)
    assert lines is not None
    loss_and_gradient(backbone, prompt_PH, lines)  # what the model can do is found out by running it
    with DeviceReads() as reads:
        loss_and_gradient(backbone, prompt_PH, lines)
    assert reads.names == []
    with DeviceReads() as reads:
        expected_of(backbone, prompt_PH, batch)
    assert reads.names  # the reference path does read it: by masks of bool


def test_whole_rows_are_taken_where_the_prefix_saves_little() -> None:
    backbone = tiny_backbone("llama")
    short, long = batch_of(backbone, (3, 12, 1, 7) * 8), batch_of(backbone, (150, 160, 155, 170))
    prompt = StaticPrompt(prompt_of(backbone))
    chosen = [lay_out(backbone, prompt, batch, ROUNDED) for batch in (short, long)]
    assert [each is not None and each.shape.is_plain for each in chosen] == [False, True]


@pytest.mark.parametrize("sizes", [EXACT, ROUNDED], ids=["exact", "padded"])
@pytest.mark.parametrize("family", sorted(ATTENTION))
def test_the_path_is_the_same_in_every_precision(family: str, sizes: Sizes) -> None:
    shapes = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        backbone = tiny_backbone(family)
        backbone.model.to(dtype)
        lines = lay_out(backbone, StaticPrompt(prompt_of(backbone)), batch_of(backbone), sizes)
        shapes.append((lines and lines.shape, backbone.capabilities))
    assert shapes == [shapes[0]] * 3


def test_a_known_prefix_is_the_same_for_every_batch() -> None:
    backbone = tiny_backbone("llama")
    batch = batch_of(backbone)
    known = dataclasses.replace(batch, examples=[row for row in batch.examples if len(row.ids) > 8][:1])
    lines = lay_out(backbone, StaticPrompt(prompt_of(backbone)), known.beginning_with(batch.prefix_ids))
    assert lines is not None
    assert lines.shape.num_prefix == P + 2


@pytest.mark.skipif(not (ASSETS / "movie_reviews").is_dir(), reason="needs the downloaded reviews")
@pytest.mark.parametrize("num_virtual", [20, 100])
def test_a_thousand_steps_have_few_shapes(num_virtual: int) -> None:
    task = Task(
        f"{{prompt:{num_virtual}}}Review: {{text}}\nSentiment:", verbalizer={"negative": " no", "positive": " yes"}
    )
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "smollm2-135m-instruct")
    rows = read_rows(str(ASSETS / "movie_reviews" / "train.csv"), "train", task.columns)
    examples = Coder(task, tokenizer).encode(rows)
    stream, prefix = BatchStream([len(each) for each in examples], 32, seed=0), prefix_ids(examples)
    backbone = tiny_backbone("llama")
    prompt = StaticPrompt(torch.zeros(num_virtual, backbone.width))
    shapes = set()
    for step in range(1000):
        batch = backbone.collate([examples[row] for row in stream[step]]).beginning_with(prefix)
        lines = lay_out(backbone, prompt, batch, ROUNDED)
        assert isinstance(lines, Lines)
        shapes.add(lines.shape)
    assert len(shapes) <= 12, sorted(map(str, shapes))

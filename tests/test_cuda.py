"""On a GPU: the two paths agree, and a run trains, resumes, predicts and inspects; skipped where there is none."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from families import ATTENTION, tiny_backbone

import ptuning
from ptuning.cli import main as cli
from ptuning.config.run import RunConfig
from ptuning.data.batches import collate
from ptuning.data.coder import Coder
from ptuning.data.readers import Row
from ptuning.data.task import Task
from ptuning.evaluation.scoring import evaluate
from ptuning.forward import line_pass, objective
from ptuning.forward.batch_prompt import StaticPrompt
from ptuning.forward.packing import Sizes
from ptuning.forward.paths import label_logits
from ptuning.forward.splice import splice
from ptuning.inference.prompted_lm import PromptedLM
from ptuning.model import Backbone
from ptuning.prompts import encoders, initializers
from ptuning.training import backward as gradient
from ptuning.training.graphs import GraphedPass
from ptuning.training.interrupts import Interrupted
from ptuning.training.run import Trainer, train
from ptuning.training.run_directory import RunDirectory

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that CUDA can use")
TASK = Task("{prompt:4}review: {text}\nsentiment:", verbalizer={"negative": " negative", "positive": " positive"})
ROWS = [{"text": text, "label": "positive"} for text in ("the film", "a very dull plot was the film", "", "bright")]


def on_cuda(backbone: Backbone) -> Backbone:
    """The same model on the GPU, in the same precision."""
    return Backbone.of(copy.deepcopy(backbone.model).cuda(), backbone.tokenizer, backbone.name)


def measured(path, backbone, batch):
    """Label logits and the gradient of every encoder parameter, on the CPU."""
    torch.manual_seed(0)  # the encoder is drawn on the CPU, so that it is the same for both
    start_PH = initializers.from_vocabulary(backbone.vocabulary_VH.cpu(), 4)
    encoder = encoders.Residual(start_PH, hidden_size=16)
    torch.nn.init.normal_(encoder.network[-1].weight, std=0.3)
    encoder.to(backbone.device)
    logits_NV = path(backbone, encoder(), batch.to(backbone.device))
    torch.nn.functional.cross_entropy(logits_NV, batch.targets_N.to(backbone.device)).backward()
    return logits_NV.detach().cpu(), {name: each.grad.cpu() for name, each in encoder.named_parameters()}


def examples_of(backbone):
    return Coder(TASK, backbone.tokenizer).encode([Row(row, "row") for row in ROWS])


def test_both_paths_on_the_gpu_equal_the_reference_on_the_cpu(any_backbone):
    batch = collate(examples_of(any_backbone), any_backbone.pad_id)
    reference_NV, reference = measured(splice, any_backbone, batch)
    gpu = on_cuda(any_backbone)
    for path in (splice, label_logits):
        logits_NV, gradients = measured(path, gpu, batch)
        assert (logits_NV - reference_NV).abs().max() < 1e-4
        for name, expected in reference.items():
            assert (gradients[name] - expected).norm() < 1e-4 * expected.norm(), name


def test_evaluation_and_answers_on_the_gpu_are_those_on_the_cpu(any_backbone):
    gpu, examples = on_cuda(any_backbone), examples_of(any_backbone)
    prompt_PH = initializers.from_vocabulary(any_backbone.vocabulary_VH, 4)
    label_ids = Coder(TASK, any_backbone.tokenizer).label_ids
    metrics = [evaluate(each, prompt_PH.to(each.device), examples, label_ids) for each in (any_backbone, gpu)]
    assert metrics[0].loss == pytest.approx(metrics[1].loss, abs=1e-4)
    prompt = ptuning.SoftPrompt(prompt_PH, TASK, any_backbone.name, any_backbone.fingerprint)
    cpu_lm, gpu_lm = (PromptedLM(each, {"p": prompt}) for each in (any_backbone, gpu))
    expected = [each.probabilities["positive"] for each in cpu_lm.classify(ROWS)]
    assert [each.probabilities["positive"] for each in gpu_lm.classify(ROWS)] == pytest.approx(expected, abs=1e-4)
    assert gpu_lm.log_probs(ROWS) == pytest.approx(cpu_lm.log_probs(ROWS), abs=1e-3)
    assert len(gpu_lm.generate(ROWS, max_new_tokens=4, num_beams=2)) == len(ROWS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_run_on_the_gpu_is_resumed_and_its_prompt_used(run_config: Path, tmp_path: Path, capsys, dtype) -> None:
    options = ["--model.device=auto", f"--model.dtype={dtype}", "--train.max_steps=60"]
    config = RunConfig.from_yaml(run_config, options)
    after_step = Trainer._after_step

    def interrupted_after_step(self, record, bar):
        after_step(self, record, bar)
        if record.step == 7:
            self._save("last")
            raise Interrupted("now")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_after_step", interrupted_after_step)
        with pytest.raises(Interrupted):
            train(config)
    result = train(config, resume=True)
    assert result.prompt.training["steps"] == 60
    baseline, tuned = result.metrics["results"].values()
    assert tuned["loss"] < baseline["loss"] - 1
    capsys.readouterr()
    for command in (["evaluate"], ["predict", "--input", "the film was good"], ["inspect"]):
        assert cli.main([command[0], str(result.directory), *command[1:], "--device", "cuda", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)


def test_many_prompts_on_the_gpu_answer_as_each_alone(any_backbone):
    gpu = on_cuda(any_backbone)
    prompts = {}
    for seed, length in enumerate((4, 9, 2)):
        task = dataclasses.replace(TASK, template=f"{{prompt:{length}}}review: {{text}}")
        start_PH = initializers.at_random(any_backbone.vocabulary_VH, length, seed)
        prompts[str(length)] = ptuning.SoftPrompt(start_PH, task, gpu.name, gpu.fingerprint)
    lm, names = PromptedLM(gpu, prompts), ["4", "9", "2", "9"]
    alone = [lm.classify([row], name)[0] for row, name in zip(ROWS, names, strict=True)]
    for one, other in zip(lm.classify(ROWS, names), alone, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)
    texts = lm.generate(ROWS, names, max_new_tokens=4)
    told = [""] * len(ROWS)
    for piece in lm.generate(ROWS, names, max_new_tokens=4, stream=True):
        told[piece.row] += piece.text
    assert told == texts
    assert all(each.is_cuda for each in lm.prompts.ready("9").tensors)


def test_conditioned_prompt_and_checkpointing_on_the_gpu(backbone):
    gpu = on_cuda(backbone)
    encoder = encoders.Conditioned(initializers.at_random(gpu.vocabulary_VH, 4))
    batch = collate(examples_of(gpu), gpu.pad_id)
    gradients = []
    for each in (gpu, gpu.with_checkpointing()):
        encoder.zero_grad()
        objective.loss(each, encoder, batch).backward()
        gradients.append(encoder.prompt_PH.grad.clone())
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[0].norm()


def test_loss_in_a_loop_of_ones_own_on_the_gpu(backbone):
    gpu = on_cuda(backbone)
    encoder = encoders.LSTM(initializers.at_random(gpu.vocabulary_VH, 4))
    batch = collate(examples_of(gpu), gpu.pad_id)
    objective.loss(gpu, encoder(), batch).backward()
    assert all(each.grad is not None and each.grad.is_cuda for each in encoder.parameters())
    assert label_logits(gpu, encoder(), batch.to(gpu.device)).is_cuda


def test_parts_of_rows_and_labels_of_several_tokens_on_the_gpu(backbone):
    found = []
    task = dataclasses.replace(TASK, verbalizer={"negative": " very bad film", "positive": " good"})
    for each in (backbone, on_cuda(backbone)):
        prompt_PH = initializers.from_vocabulary(backbone.vocabulary_VH, 4).to(each.device).requires_grad_()
        examples = Coder(TASK, each.tokenizer).encode([Row(row, "row") for row in ROWS])
        total = gradient.backward_in_parts(each, prompt_PH, examples, batch_size=3)
        lm = PromptedLM(each, {"p": ptuning.SoftPrompt(prompt_PH.detach().cpu(), task, each.name, each.fingerprint)})
        scores = [row.probabilities["positive"] for row in lm.classify(ROWS)]
        found.append((float(total), prompt_PH.grad.cpu(), scores))
    (total, grad_PH, scores), (its_total, its_grad_PH, its_scores) = found
    assert its_total == pytest.approx(total, rel=1e-4)
    assert (its_grad_PH - grad_PH).norm() < 1e-4 * grad_PH.norm()
    assert its_scores == pytest.approx(scores, abs=1e-4)


LONG_ROWS = [{"text": text, "label": "positive"} for text in ("the film", " was dull" * 7, " bad" * 3)]


@pytest.mark.parametrize("is_plain", [False, True])
@pytest.mark.parametrize("family", sorted(ATTENTION))
def test_lines_on_the_gpu_equal_splice_on_the_cpu(family: str, is_plain: bool) -> None:
    backbone = tiny_backbone(family)
    gpu, batch = on_cuda(backbone), backbone.collate(examples_of(backbone))
    prompt_PH = initializers.from_vocabulary(backbone.vocabulary_VH, 4)
    make = line_pass.whole_rows if is_plain else line_pass._packed
    lines = make(gpu, StaticPrompt(prompt_PH.cuda()), batch, Sizes(are_rounded=True))
    if lines is None:
        pytest.skip("does not pack")
    leaf = prompt_PH.clone().requires_grad_()
    expected = objective.loss_sum(backbone, leaf, batch, "splice")
    expected.backward()
    loss, gradient_PH = line_pass.loss_and_gradient(gpu, prompt_PH.cuda(), lines.to(gpu.device))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert (gradient_PH.cpu() - leaf.grad).norm() <= 1e-4 * leaf.grad.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replayed_graphs_give_the_numbers_of_the_pass_in_any_order(dtype: torch.dtype) -> None:
    gpu = on_cuda(tiny_backbone("llama"))
    gpu.model.to(dtype)
    prompts = [initializers.at_random(gpu.vocabulary_VH.float(), num, seed=num) for num in (4, 9)]
    passes = []
    for prompt_PH in prompts:
        task = dataclasses.replace(TASK, template=f"{{prompt:{len(prompt_PH)}}}review: {{text}}\nsentiment:")
        for rows in (ROWS, LONG_ROWS, ROWS[1:]):
            examples = Coder(task, gpu.tokenizer).encode([Row(row, "row") for row in rows])
            lines = line_pass.lay_out(gpu, StaticPrompt(prompt_PH), gpu.collate(examples))
            passes.append((prompt_PH, lines.to(gpu.device)))
    expected = [line_pass.loss_and_gradient(gpu, *each) for each in passes]
    run = GraphedPass()
    for _ in range(4):
        for each, (loss, gradient_PH) in zip(passes, expected, strict=True):
            found_loss, found_PH = run(gpu, *each)
            torch.testing.assert_close(found_loss, loss)
            torch.testing.assert_close(found_PH, gradient_PH)
    assert run.graphs, "no graph was recorded"
    assert run.is_on


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_steps_behind_the_first_wait_for_the_gpu_only_where_the_loss_is_read(run_config: Path) -> None:
    options = ["--model.device=cuda", "--train.max_steps=40", "--train.logging_steps=10", "--train.save_steps=40"]
    trainer = Trainer(config := RunConfig.from_yaml(run_config, options), RunDirectory(config.train.output_dir))
    steps = trainer.loop.steps()
    for _ in range(20):
        next(steps)  # every shape is recorded
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(9):
            next(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert next(steps).step == 30


def test_a_run_that_is_resumed_on_one_gpu_is_the_same_to_the_bit(run_config: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    options = ["--model.device=cuda", "--train.max_steps=24", "--train.save_steps=8"]
    try:
        whole = train(RunConfig.from_yaml(run_config, [*options, f"--train.output_dir={tmp_path}/whole"]))
        config = RunConfig.from_yaml(run_config, [*options, f"--train.output_dir={tmp_path}/parts"])
        after_step = Trainer._after_step

        def interrupted(self, record, bar):
            after_step(self, record, bar)
            if record.step == 11:
                self._save("last")
                raise Interrupted("now")

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_after_step", interrupted)
            with pytest.raises(Interrupted):
                train(config)
        resumed = train(config, resume=True)
    finally:
        torch.use_deterministic_algorithms(False)
    difference = (whole.prompt.embeddings_PH - resumed.prompt.embeddings_PH).abs().max().item()
    assert difference == 0, f"the largest difference is {difference:.1e}"


def test_checkpointing_in_bfloat16_runs_layers_again_by_the_same_attention():
    gpu = on_cuda(tiny_backbone("llama"))
    gpu.model.to(torch.bfloat16)
    prompt_PH = initializers.from_vocabulary(gpu.vocabulary_VH.float(), 4)
    gradients = []
    for each in (gpu, gpu.with_checkpointing()):
        leaf = prompt_PH.clone().requires_grad_()
        for _ in range(3):  # the third by a graph
            gradient.backward_in_parts(each, leaf, examples_of(gpu), run=GraphedPass())
        gradients.append(leaf.grad)
    assert (gradients[0] - gradients[1]).norm() < 1e-2 * gradients[0].norm()


def test_cudnn_is_chosen_as_before_when_a_pass_has_ended() -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    gpu = on_cuda(tiny_backbone("llama"))
    objective.loss(gpu, initializers.from_vocabulary(gpu.vocabulary_VH, 4), gpu.collate(examples_of(gpu)))
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_a_model_can_do_is_the_same_on_the_gpu(any_backbone, dtype: str) -> None:
    gpu = on_cuda(any_backbone)
    gpu.model.to(getattr(torch, dtype))
    names = ("supports_packing", "supports_joint_prefix", "ignores_padding_gaps", "ignores_left_padding")
    assert [getattr(gpu, name) for name in names] == [getattr(any_backbone, name) for name in names]

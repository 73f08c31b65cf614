"""A run keeps snapshots of the prompt, and the prompt can be followed through them."""

import pytest
import torch
from synthetic import cloud, drawn

from ptuning.config.run import RunConfig
from ptuning.errors import PromptError, TrainingError
from ptuning.inspection.measures.trajectory import COLUMNS, trajectory
from ptuning.inspection.vocabulary.embeddings import Vocabulary
from ptuning.model import Backbone
from ptuning.prompts import encoders
from ptuning.prompts.soft_prompt import SoftPrompt
from ptuning.training.run import Trainer, train
from ptuning.training.run_directory import RunDirectory


def test_way_of_a_planted_run(tmp_path):
    vocabulary, run = cloud(), RunDirectory(tmp_path / "run")
    start_PH, goal_PH = vocabulary.rows([1, 2]), vocabulary.rows([1, 12])
    for step, share in ((0, 0.0), (20, 0.3), (40, 0.9)):
        run.save_snapshot(step, start_PH + share * (goal_PH - start_PH))
    for record in ({"step": 20, "loss": 2.0}, {"step": 40, "loss": 1.5}, {"step": 40, "eval_loss": 1.0}):
        run.append_log(record)
    table = trajectory(run.path, vocabulary)
    assert all(list(record) == list(COLUMNS) for record in table)
    assert table.column("step") == [0, 20, 40]
    assert table.column("ids") == [[1, 2], [1, 2], [1, 12]]
    assert table.column("num_flips") == [0, 0, 1]
    assert table.column("num_init") == [2, 2, 1]
    assert table.column("loss") == [None, 2.0, 1.5]
    assert table.column("eval_loss") == [None, None, 1.0]
    length = float((goal_PH - start_PH).norm(dim=1).mean())
    assert table.column("drift") == pytest.approx([0.0, 0.3 * length, 0.9 * length], rel=1e-4)
    assert table.column("cosine")[0] == pytest.approx(1.0)
    assert table.column("cosine") == sorted(table.column("cosine"), reverse=True)
    assert table[0]["norm"] == pytest.approx(float(start_PH.norm(dim=1).mean()))


def test_run_without_snapshots_has_no_way(tmp_path):
    assert len(trajectory(tmp_path, cloud())) == 0


def test_broken_ends_are_told_or_passed_over(tmp_path):
    vocabulary, run = cloud(), RunDirectory(tmp_path / "run")
    run.save_snapshot(0, vocabulary.rows([1]))
    run.log.write_text('{"step": 0, "loss": 2.0}\n{"step": 1, "lo')
    assert trajectory(run.path, vocabulary).column("loss") == [2.0]
    with pytest.raises(PromptError, match="a run of prompts of width 32; expected the base's width 8"):
        trajectory(run.path, cloud(100, 8))
    (tmp_path / "run" / "checkpoints" / "prompts" / "00000005.safetensors").write_bytes(b"no tensor")
    with pytest.raises(TrainingError, match=r"snapshot .*00000005.safetensors is broken"):
        trajectory(run.path, vocabulary)


def test_training_keeps_snapshots_from_step_0_to_the_last(run_config, model_directory, tmp_path):
    result = train(RunConfig.from_yaml(run_config))
    snapshots = RunDirectory(tmp_path / "run").snapshots()
    assert set(snapshots) <= {0, 3, 4, 6, 8, 9, 12}  # where a checkpoint is written: the last, the best
    assert {0, 3, 6, 9, 12} <= set(snapshots)
    backbone = Backbone.from_pretrained(model_directory, dtype="float32")
    start_PH = Vocabulary.of(backbone).rows(result.prompt.init["token_ids"])
    assert torch.equal(snapshots[0], start_PH)
    assert torch.equal(snapshots[result.prompt.training["best_step"]], SoftPrompt.load(result.directory).embeddings_PH)


def test_snapshots_after_the_step_that_is_resumed_are_made_again(tmp_path):
    run = RunDirectory(tmp_path)
    for step in (0, 10, 20):
        run.save_snapshot(step, drawn(2, 4, seed=step))
    run.cut_log(10)
    assert list(run.snapshots()) == [0, 10]


def test_encoders_are_kept_as_the_prompt_that_they_make(run_config, tmp_path):
    for name in ("mlp", "conditioned"):
        config = RunConfig.from_yaml(run_config, [f"--prompt.encoder={name}", f"--train.output_dir={tmp_path}/{name}"])
        trainer = Trainer(config, RunDirectory(config.train.output_dir))
        trainer._save_snapshot()
        assert torch.equal(trainer.directory.snapshots()[0], trainer.inputs.start_PH)
        assert name in encoders.BY_NAME

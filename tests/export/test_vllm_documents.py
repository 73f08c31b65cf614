"""What SERVING.md says is true: its examples run, and its limits are those of the code."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from fake_vllm import FakeVLLM
from families import tiny_backbone

from ptuning.cli.main import main
from ptuning.data.task import Task
from ptuning.export.vllm import labels, probes, server
from ptuning.prompts.soft_prompt import SoftPrompt

SERVING = (REPOSITORY / "ptuning" / "export" / "SERVING.md").read_text(encoding="utf-8")
SCRIPT = REPOSITORY / "scripts" / "serve_vllm.sh"


def test_examples_run(
    tmp_path: Path, model_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    backbone = tiny_backbone()
    task = Task("{prompt:2}{text}", verbalizer={"bad": " bad", "good": " good"})
    prompt = SoftPrompt(torch.randn(2, backbone.width), task, str(model_directory), backbone.fingerprint)
    prompt.save(tmp_path / "runs" / "movie-reviews")
    Path("rows.csv").write_text("text\na film\na plot\n")
    with FakeVLLM(backbone.model, backbone.tokenizer) as fake:
        here = SERVING.replace("http://127.0.0.1:8000", fake.url)
        commands = re.findall(r"^ptuning .*$", here, flags=re.MULTILINE)
        assert [each.split()[1] for each in commands] == ["export", "predict"]
        assert all(main(each.split()[1:]) == 0 for each in commands)
        assert len(Path("answers.csv").read_text().splitlines()) == 3
        (example,) = re.findall(r"```python\n(.*?)```", here, flags=re.DOTALL)
        exec(compile(example, "SERVING.md", "exec"), {})
    assert "Classification(label=" in capsys.readouterr().out


def test_limits_are_those_of_the_code() -> None:
    statuses = ", ".join(map(str, sorted(server._PASSING)[:-1]))
    assert f"status {statuses} or {max(server._PASSING)} | tried again up to {server.MAX_RETRIES} times" in SERVING
    assert f"by more than {probes.MOST_DIFFERENCE} on average" in SERVING
    assert f"({labels._MOST_BEGINNINGS} at most in one request)" in SERVING


def test_the_script_starts_a_server_on_the_loopback(tmp_path: Path) -> None:
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\n[ "$1" = -c ] || echo "$VLLM_CPU_KVCACHE_SPACE $*"\n')
    python.chmod(0o755)
    run = subprocess.run(
        ["bash", str(SCRIPT), "some/model", "8123"],
        env={"PATH": "/usr/bin:/bin", "VLLM_ENV": str(tmp_path / "env"), "VLLM_DTYPE": "float32"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "vllm serve some/model --enable-prompt-embeds --dtype float32 --max-model-len 1024" in run.stdout
    assert run.stdout.splitlines()[-1] == (
        "2 -m vllm.entrypoints.openai.api_server --model some/model --enable-prompt-embeds --dtype float32 "
        "--max-model-len 1024 --block-size 32 --enforce-eager --host 127.0.0.1 --port 8123"
    )
    without = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert without.returncode != 0
    assert "usage: bash scripts/serve_vllm.sh MODEL_DIR" in without.stderr


def test_the_check_reads_the_servers_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import urllib.request

    import check_vllm

    text = (
        "# TYPE vllm:prefix_cache_queries_total counter\n"
        'vllm:prefix_cache_queries_total{engine="0",model_name="m"} 640.0\n'
        'vllm:prefix_cache_hits_total{engine="0",model_name="m"} 96.0\n'
        'vllm:prefix_cache_hits_total{engine="1",model_name="m"} 4.0\n'
        'vllm:external_prefix_cache_hits_total{engine="0",model_name="m"} 7.0\n'
    )
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(text.encode()))
    assert check_vllm.metrics(1) == {"prefix_cache_queries": 640.0, "prefix_cache_hits": 100.0}
    assert json.dumps(check_vllm.metrics(1))

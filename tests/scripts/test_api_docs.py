"""The reference of all public names is built from their docstrings."""

import subprocess
import sys
from pathlib import Path

from conftest import REPOSITORY


def test_the_reference_is_written(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "scripts" / "api_docs.py"), str(tmp_path / "api")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"saved: {tmp_path}/api/ptuning.html\n"
    text = (tmp_path / "api" / "ptuning.html").read_text()
    assert "PromptClassifier" in text
    assert (tmp_path / "api" / "ptuning" / "inspection.html").exists()

"""No command asks a host, or opens a file that it was not given, whatever its inputs would like it to do."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import datasets
import pyarrow
import pytest
from conftest import REPOSITORY
from pyarrow import parquet

from ptuning.prompts.storage import OWN_FILE
from ptuning.sealed import has_changed

WATCHED = """
import os, sys
log = open(sys.argv[1], "a")
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen", "os.system"):
        log.write(f"{event} {arguments!r}\\n"); log.flush()
    elif event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        log.write(f"open {os.path.realpath(os.fsdecode(arguments[0]))}\\n"); log.flush()
sys.addaudithook(hook)
from ptuning.cli.main import main
sys.exit(main(sys.argv[2:]))
"""
ALLOWED = [  # besides the test's own folder: the interpreter, its packages, and what the system tells
    *{sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")},
    *("/usr", "/lib", "/proc", "/sys", "/dev", "/etc", sys.prefix, sys.base_prefix, str(REPOSITORY / "ptuning")),
    str(Path.home() / ".cache"),
]


@pytest.fixture
def hostile(tmp_path: Path, model_directory: Path) -> Path:
    """A folder with rows whose pictures lie elsewhere, a config for them, and a secret beside the folder."""
    folder = tmp_path / "own"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    pictures = [str(tmp_path / "secret.png"), "http://127.0.0.1:9/picture.png"]
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.Value("string"), "picture": datasets.Image()}
    )
    rows = {
        "text": [f"film {i}" for i in range(24)],
        "label": [("good", "bad")[i % 2] for i in range(24)],
        "picture": [{"bytes": None, "path": pictures[i % 2]} for i in range(24)],
    }
    table = pyarrow.table(rows).cast(features.arrow_schema)
    parquet.write_table(table.replace_schema_metadata(features.arrow_schema.metadata), folder / "rows.parquet")
    config = {
        "model": {"name_or_path": str(model_directory), "device": "cpu"},
        "data": {
            "train": str(folder / "rows.parquet"),
            "test": str(folder / "rows.parquet"),
            "template": "{prompt:4}{text}:",
            "verbalizer": {"good": " good", "bad": " bad"},
        },
        "train": {"output_dir": str(folder / "run"), "max_steps": 2},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    return folder


def environment(folder: Path) -> dict[str, str]:
    """The environment of a command whose files all lie in the folder."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return kept | {"HF_HOME": str(folder / "hub"), "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}


def watched(folder: Path, *arguments: str) -> tuple[int, list[str]]:
    """The exit status of a command, and what it did that could reach beyond its inputs."""
    log = folder / "log.txt"
    log.unlink(missing_ok=True)
    command = [sys.executable, "-c", WATCHED, str(log), *arguments]
    status = subprocess.run(command, env=environment(folder), cwd=folder, capture_output=True, check=False).returncode
    return status, log.read_text().splitlines()


def strange(folder: Path, model: Path, events: list[str]) -> list[str]:
    """The events that are neither a file of the folder or the model, nor one that Python itself needs."""
    places = [Path(each).resolve() for each in (folder, model, *ALLOWED)]
    return [
        event
        for event in events
        if not event.startswith("open ") or not any(Path(event[5:]).is_relative_to(place) for place in places)
    ]


def commands(folder: Path, model: Path) -> list[tuple[str, ...]]:
    """Every command, on the hostile rows."""
    rows, run = str(folder / "rows.parquet"), str(folder / "run")
    return [
        ("init", rows, "--model", str(model), "--output", str(folder / "new.yaml")),
        ("train", "--config", str(folder / "config.yaml")),
        ("evaluate", run, "--data", rows, "--baseline", "--predictions", str(folder / "predictions.jsonl")),
        ("predict", run, "--data", rows, "--output", str(folder / "answers.jsonl")),
        ("inspect", run, "--data", rows, "--html", str(folder / "report.html")),
        ("harden", run, "--data", rows, "--max-steps", "1"),
    ]


def test_commands_reach_for_nothing_but_their_inputs(hostile: Path, model_directory: Path) -> None:
    for arguments in commands(hostile, model_directory):
        status, events = watched(hostile, *arguments)
        assert status == 0, arguments
        assert len(events) > 50
        assert strange(hostile, model_directory, events) == [], arguments
    assert not has_changed((hostile / "run" / "prompt" / OWN_FILE).read_bytes())


def test_the_watch_sees_what_reaches_out(hostile: Path, model_directory: Path) -> None:
    (hostile.parent / "elsewhere.jsonl").write_text('{"text": "a"}\n')
    _, events = watched(hostile, "init", str(hostile.parent / "elsewhere.jsonl"), "--output", str(hostile / "a.yaml"))
    assert strange(hostile, model_directory, events) == [f"open {hostile.parent}/elsewhere.jsonl"]


# What libraries do by themselves, without Python's knowledge, the kernel sees.

WITHOUT_NETWORK = ("unshare", "--map-root-user", "--net")
_CALL = re.compile(r'(?P<call>open|openat|creat|connect)\((?:AT_FDCWD, |\d+(?:<[^>]*>)?, )?(?P<what>"[^"]*"|\{.*?\})')


def can_run(*command: str) -> bool:
    """Whether this machine has a program, and allows it."""
    return shutil.which(command[0]) is not None and subprocess.run([*command, "true"], check=False).returncode == 0


def traced(folder: Path, *arguments: str) -> tuple[int, list[str]]:
    """As `watched`, without a network: what a command's processes opened, and which hosts they asked."""
    log = folder / "calls.txt"
    seen = ("strace", "--follow-forks", "--quiet=all", "--successful-only", "--string-limit=4096")
    command = [*WITHOUT_NETWORK, *seen, "--trace=open,openat,creat,connect", f"--output={log}"]
    command += [sys.executable, "-m", "ptuning", *arguments]
    status = subprocess.run(command, env=environment(folder), cwd=folder, capture_output=True, check=False).returncode
    found = [_CALL.search(line) for line in log.read_text(errors="replace").splitlines()]
    calls = [(each["call"], each["what"]) for each in found if each]
    hosts = [what for call, what in calls if call == "connect" and "AF_UNIX" not in what]
    files = [os.path.realpath(folder / what.strip('"')) for call, what in calls if call != "connect"]
    return status, [*(f"host {each}" for each in hosts), *(f"open {each}" for each in files)]


@pytest.mark.skipif(not can_run(*WITHOUT_NETWORK), reason="needs unshare, and the right to use it")
def test_commands_run_where_there_is_no_network(hostile: Path, model_directory: Path) -> None:
    for arguments in commands(hostile, model_directory)[:2]:
        command = [*WITHOUT_NETWORK, sys.executable, "-m", "ptuning", *arguments]
        subprocess.run(command, env=environment(hostile), cwd=hostile, capture_output=True, check=True)


@pytest.mark.skipif(not can_run(*WITHOUT_NETWORK, "strace"), reason="needs unshare and strace")
def test_the_kernel_sees_no_other_file_and_no_host(hostile: Path, model_directory: Path) -> None:
    _, train, _, predict, *_ = commands(hostile, model_directory)
    for arguments in (train, predict):
        status, events = traced(hostile, *arguments)
        assert status == 0, arguments
        assert len(events) > 50
        assert strange(hostile, model_directory, events) == [], arguments
    elsewhere = hostile.parent / "elsewhere.jsonl"
    elsewhere.write_text('{"text": "a"}\n')
    _, events = traced(hostile, "init", str(elsewhere), "--output", str(hostile / "a.yaml"))
    assert set(strange(hostile, model_directory, events)) == {f"open {elsewhere}"}  # it would be seen

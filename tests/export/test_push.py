"""The command line, and pushing to a hub: private, whole, with a token that nobody sees."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lion_ray.core.store import RunStore
from tests.export.stub_hub import TOKEN, Hub, Repository, stub_hub
from tests.export.test_folder import files
from tests.warm import TOKENIZERS, Outcome, lion


@pytest.fixture(scope="module")
def running_hub() -> Iterator[Hub]:
    with stub_hub() as found:
        yield found


@pytest.fixture
def hub(running_hub: Hub) -> Hub:
    """One for all tests, so that their commands have one environment; empty."""
    running_hub.empty()
    return running_hub


def command(hub: Hub | None, run: RunStore, out: Path, *words: str, token: str | None = TOKEN) -> Outcome:
    """`lion-ray export`, with nothing of the user's own login about it."""
    settings = {
        "HF_ENDPOINT": hub.url if hub else "http://127.0.0.1:9",
        "HF_HOME": str(out.parents[1] / "hf-home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    arguments = ("export", run.root, "--out", str(out), *words)
    warm: dict[str, Any] = {"imported": TOKENIZERS, "first": settings} if hub else {}
    told = lion(*arguments, cwd=out.parent, env=settings | {"HF_TOKEN": token or ""}, **warm)
    assert TOKEN not in told.out + told.err
    return told


def held(hub: Hub, kind: str, name: str) -> dict[str, bytes]:
    return hub.repositories[kind, name].files


def on_disk(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files(folder)}


def test_a_push_brings_every_byte_to_private_repositories(hub: Hub, run: RunStore, tmp_path: Path) -> None:
    told = command(hub, run, tmp_path / "out", "--push", "me/little")
    assert told.code == 0, told.err
    assert set(hub.repositories) == {("dataset", "me/little"), ("model", "me/little")}
    assert all(repository.private for repository in hub.repositories.values())
    assert held(hub, "dataset", "me/little") == on_disk(tmp_path / "out" / "data")
    assert held(hub, "model", "me/little") == on_disk(tmp_path / "out" / "model")
    assert len(hub.uploaded) > 5, "weights and tables went through LFS"
    assert f"pushed data: {hub.url}/datasets/me/little" in told.out
    card = held(hub, "model", "me/little")["README.md"].decode()
    assert "datasets:\n- me/little" in card
    assert "https://huggingface.co/datasets/me/little" in card
    assert "https://huggingface.co/me/little" in held(hub, "dataset", "me/little")["README.md"].decode()


def test_a_push_that_failed_goes_on_without_exporting_again(hub: Hub, run: RunStore, tmp_path: Path) -> None:
    hub.failing.add("/api/models/me/little/commit/main")
    told = command(hub, run, tmp_path / "out", "--push", "me/little")
    assert told.code == 6
    assert "repeat the command to push it again" in told.message
    assert "bad day" in told.message
    before = files(tmp_path / "out")
    hub.failing.clear()
    told = command(hub, run, tmp_path / "out", "--push", "me/little", "--json")
    assert told.code == 0, told.err
    done = json.loads(told.out)
    assert done["made"] is False
    assert done["pushed"] == [f"{hub.url}/datasets/me/little", f"{hub.url}/me/little"]
    assert files(tmp_path / "out") == before
    assert held(hub, "model", "me/little") == on_disk(tmp_path / "out" / "model")


def test_what_is_damaged_is_not_pushed(hub: Hub, run: RunStore, tmp_path: Path) -> None:
    assert command(hub, run, tmp_path / "out", "--push", "me/little", "--what", "data").code == 0
    hub.repositories.clear()
    path = tmp_path / "out" / "data" / "README.md"
    path.write_text(path.read_text() + "more")
    told = command(hub, run, tmp_path / "out", "--push", "me/little", "--what", "data")
    assert told.code == 3
    assert "README.md was changed after the export" in told.message
    assert hub.repositories == {}


def test_a_public_repository_gets_nothing_unless_asked(hub: Hub, run: RunStore, tmp_path: Path) -> None:
    hub.repositories["dataset", "me/little"] = Repository(private=False)
    words = ("--push", "me/little", "--what", "data")
    told = command(hub, run, tmp_path / "out", *words)
    assert told.code == 2
    assert "the dataset repository is public; add --public" in told.message
    assert held(hub, "dataset", "me/little") == {}
    told = command(hub, run, tmp_path / "out", *words, "--public")
    assert told.code == 0, told.err
    assert held(hub, "dataset", "me/little") == on_disk(tmp_path / "out" / "data")


@pytest.mark.parametrize(
    ("words", "token", "code", "told"),
    [
        (("--push", "me/little"), None, 2, "set the environment variable HF_TOKEN"),
        (("--push", "little"), TOKEN, 2, "expected OWNER/NAME"),
        (("--push", "me/little/more"), TOKEN, 2, "--push me/little/more"),
        (("--push", "me/little", "--what", "data"), "hf_wrong", 4, "does the token in HF_TOKEN have write access"),
    ],
)
def test_a_push_that_cannot_be(
    hub: Hub, run: RunStore, tmp_path: Path, words: tuple[str, ...], token: str | None, code: int, told: str
) -> None:
    outcome = command(hub, run, tmp_path / "out", *words, token=token)
    assert outcome.code == code
    assert told in outcome.message
    assert hub.repositories == {}
    assert (tmp_path / "out").exists() == (code == 4), "what is wrong from the start is said at the start"


def test_a_hub_that_is_not_there(run: RunStore, tmp_path: Path) -> None:
    told = command(None, run, tmp_path / "out", "--push", "me/little", "--what", "data")
    assert told.code == 6
    assert "http://127.0.0.1:9: the push failed" in told.message
    assert (tmp_path / "out" / "SHA256SUMS").exists()


def test_nothing_is_sent_without_being_asked(hub: Hub, run: RunStore, tmp_path: Path) -> None:
    told = command(hub, run, tmp_path / "out", "--what", "model, data")
    assert told.code == 0
    assert hub.requests == []
    assert "data: 8 training rows" in told.out


def test_a_user_s_mistakes_are_one_line(run: RunStore, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command(None, run, out, "--what", "weights").message.endswith("choose from data, model, adapters")
    assert "no checkpoint of iteration 9" in command(None, run, out, "--iteration", "9").message
    shutil.copytree(run.root, tmp_path / "broken")
    (tmp_path / "broken" / "run.json").unlink()
    assert "no run found" in command(None, RunStore(str(tmp_path / "broken")), out).message

"""A fit's checkpoint is data: it restores the same bits, and nothing planted in its folder runs."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict

from lion_ray.core.errors import TrainingError
from lion_ray.imitation.training import state
from lion_ray.imitation.training.model import World

PATHS = ("posix.system", "builtins.eval", "builtins.getattr", "torch.load", "torch.hub.load", "operator.attrgetter")
DOTTED = ("torch.distributed.checkpoint.metadata", "Metadata.__init__.__globals__")


def trained(seed: int) -> tuple[torch.nn.Sequential, torch.optim.Optimizer]:
    """A small model, half of it frozen, after a step."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3 * (seed + 1), fused=True)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    state.save(folder, *trained(0), state.Progress("print"), World())
    return folder


class Call:
    """Unpickles as a call of `function`."""

    def __init__(self, function: object, *arguments: object) -> None:
        self._made = function, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self._made


def global_name(module: str, name: str) -> bytes:
    """A pickle that asks for one name, and is nothing but that."""
    return b"\x80\x04" + b"".join(b"\x8c" + bytes([len(s)]) + s.encode() for s in (module, name)) + b"\x93."


def test_metadata_that_wants_all_memory_is_told(saved: Path) -> None:
    """Found by fuzzing: 15 bytes that make Python's unpickler take 16 GB."""
    (saved / ".metadata").write_bytes(b"\x80\x04}r" + (2**31 - 1).to_bytes(4, "little") + b"0N.")
    with pytest.raises(TrainingError, match="more memory"):
        state.load(saved, *trained(1), World())


def test_a_checkpoint_restores_weights_and_optimizer(saved: Path) -> None:
    there, fresh = trained(0), trained(1)
    state.load(saved, *fresh, World())
    assert all(torch.equal(a, b) for a, b in zip(there[0][1].parameters(), fresh[0][1].parameters(), strict=True))
    assert fresh[1].param_groups[0]["lr"] == there[1].param_groups[0]["lr"]
    moments = [[each["exp_avg"] for each in one.state.values()] for _, one in (there, fresh)]
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))


def test_a_pickle_planted_as_metadata_does_not_run(saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (saved / ".metadata").write_bytes(pickle.dumps(Call(os.mkdir, str(marker))))
    with pytest.raises(TrainingError, match=r"cannot be used: .*it names posix\.mkdir") as caught:
        state.load(saved, *trained(1), World())
    assert not marker.exists()
    assert "\n" not in str(caught.value)


def test_a_pickle_planted_among_the_optimizer_s_settings_does_not_run(saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    moments: Any
    weights, moments = get_state_dict(*trained(0), options=state._options())
    moments["param_groups"][0]["lr"] = Call(os.mkdir, str(marker))
    dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=saved, no_dist=True)
    marker.rmdir() if marker.exists() else None
    with pytest.raises(TrainingError, match="cannot be used"):
        state.load(saved, *trained(1), World())
    assert not marker.exists()


@pytest.mark.parametrize("name", [tuple(path.rsplit(".", 1)) for path in PATHS] + [DOTTED])
def test_no_other_name_is_looked_up(saved: Path, name: tuple[str, str]) -> None:
    (saved / ".metadata").write_bytes(global_name(*name))
    with pytest.raises(TrainingError, match="which no checkpoint of a fit contains"):
        state.load(saved, *trained(1), World())


@pytest.mark.parametrize("place", ["../elsewhere", "/etc/hostname", "a/b", ".."])
def test_only_files_of_the_folder_are_read(saved: Path, place: str) -> None:
    metadata = pickle.loads((saved / ".metadata").read_bytes())
    next(iter(metadata.storage_data.values())).relative_path = place
    (saved / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(TrainingError, match="names a file outside the checkpoint"):
        state.load(saved, *trained(1), World())


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_a_damaged_checkpoint_is_told_in_a_line(saved: Path, name: str) -> None:
    whole = (saved / name).read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"\x00" * len(whole), pickle.dumps({"a": 1})):
        (saved / name).write_bytes(damaged)
        with pytest.raises(TrainingError, match="cannot be used") as caught:
            state.load(saved, *trained(1), World())
        assert "\n" not in str(caught.value)
    (saved / name).unlink()
    with pytest.raises(TrainingError, match="cannot be used"):
        state.load(saved, *trained(1), World())

"""A finished run's folder, small and whole, written as the run itself writes it; its texts are as hostile as may be.

One iteration and the last imitation: seven seeds (one answer failed, one was cut off), three generated, three held out.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from lion_ray.config import RunConfig
from lion_ray.core.records import ANSWER, INSTRUCTION, VERDICT, instruction_id, table
from lion_ray.core.store import RunStore
from lion_ray.pipeline.results import summarise, write_result
from tests.tiny import make_tiny_model

HOSTILE = '</td><script>alert(1)</script> | ``` [x](javascript:y) {{ 7 * 7 }} "quoted" \u202e é 漢'
SEEDS = [*(f"Describe thing {n}." for n in range(6)), HOSTILE]
GENERATED = [("Describe a hard thing.", "hard"), ("Describe an easy thing.", "easy"), ("Describe one more.", "easy")]
HELD_OUT = ["Measure one.", "Measure two.", "Measure three."]
FAILED, CUT_OFF = 1, 2
"""Places among the seeds."""
REASON = f"refused: {HOSTILE}"
QUALITY = {"ratio": 0.5, "low": 0.25, "high": 0.75}


def make_run(root: str, base: Path, **config: Any) -> RunStore:
    """Write a run into `root`, a folder or a URL, with student `base`; `config` are sections of the configuration."""
    store = RunStore(root)
    sections: dict[str, Any] = {
        "run_name": "little",
        "iterations": 1,
        "data": {"pool": "/home/ada-example/secret-folder/pool.jsonl", "heldout": 3},
        "endpoints": {"api": {"model": "teacher-1", "base_url": "https://api.example.com:8443/v1"}},
        "teacher": {"endpoint": "api"},
        "referee": {"endpoint": "api"},
        "generator": {"endpoint": "api"},
        "student": {"model": str(base), "dtype": "float32"},
        "imitation": {"max_length": 256},
    }
    described = RunConfig.model_validate(sections | config).model_dump(mode="json")
    # As an older lion-ray let it be.
    described["endpoints"]["api"]["base_url"] = "https://user:pass@api.example.com:8443/v1?key=k"
    versions = {"lion-ray": "0.1.0", "python": "3.11"}
    run = {"config": described, "source": "c.yaml", "base_dir": str(base.parent), "versions": versions}
    store.write_json("run.json", run)
    store.write_json("attempt.json", {"attempt": 1, "alive": 1_800_086_400.0, "ended": True})

    seeds = [{"text": text, "source": "seed", "iteration": 0} for text in SEEDS]
    parent = instruction_id(SEEDS[0])
    made = [{"text": text, "source": kind, "parent": parent, "iteration": 1} for text, kind in GENERATED]
    kept = [{"text": text, "source": "seed", "iteration": 0} for text in HELD_OUT]
    _pool(store, "0", seeds, parts=2, more={"duplicates": 4, "contaminated": {"near an evaluation question": 2}})
    _pool(store, "1", made, more={"kinds": {"hard": {"requests": 3, "accepted": 1, "rejected": {REASON: 2}}}})
    _pool(store, "heldout", kept)
    for name in ("0", "1", "heldout"):
        _answers(store, name)
    for iteration in (1, 2):
        _checkpoint(store, iteration, samples=5 if iteration == 1 else 3)
    _judged(store, "iteration-1", "0", 1)
    for iteration in (0, 2):
        _judged(store, f"iteration-{iteration}/heldout", "heldout", iteration)
    for iteration in (0, 1, 2):
        write_result(store, summarise(store, iteration))
    return store


def _pool(
    store: RunStore, name: str, rows: list[dict[str, Any]], parts: int = 1, more: dict[str, Any] | None = None
) -> None:
    rows = [row | {"id": instruction_id(row["text"])} for row in rows]
    size = -(-len(rows) // parts)
    for part in range(parts):
        piece = table(rows[part * size : (part + 1) * size], INSTRUCTION)
        if part == 0:
            piece = piece.drop_columns(["reference"])  # as a version that knew no references wrote it
        store.stage(f"pool-{name}").write_part(part, piece)
    store.write_json(f"pool-{name}/manifest.json", {"rows": len(rows), "parts": parts, **(more or {})})


def _parts(store: RunStore, pool: str) -> int:
    parts: int = store.read_json(f"pool-{pool}/manifest.json")["parts"]
    return parts


def _answers(store: RunStore, name: str) -> None:
    asked = store.stage(f"pool-{name}")
    place, failed, parts = 0, 0, _parts(store, name)
    for part in range(parts):
        rows = []
        for row in asked.read_part(part).to_pylist():
            answer = {
                "id": row["id"],
                "text": f"Answer: {row['text']}",
                "status": "ok",
                "finish_reason": "length" if (name, place) == ("0", CUT_OFF) else "stop",
                "model": "teacher-1",
                "endpoint": "api",
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "cost_usd": 0.25,
                "call": f"call-{name}-{place}",
            }
            if (name, place) == ("0", FAILED):
                answer |= {"text": "", "status": "quarantined", "reason": REASON, "finish_reason": None}
                failed += 1
            rows.append(answer)
            place += 1
        store.stage(f"answers-{name}").write_part(part, table(rows, ANSWER))
    quarantined = {REASON: failed} if failed else {}
    began = 1_800_000_000.0
    manifest = {"rows": place, "quarantined": quarantined, "parts": parts, "began": began, "seconds": 1.0}
    store.write_json(f"answers-{name}/manifest.json", manifest)


def _checkpoint(store: RunStore, iteration: int, samples: int) -> None:
    folder = f"iteration-{iteration}/checkpoint"
    if store.is_local:
        make_tiny_model(store.path(f"{folder}/model"), seed=iteration)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            store.adopt_folder(make_tiny_model(Path(scratch) / "model", seed=iteration), f"{folder}/model")
    metrics = {
        "samples": samples,
        "steps": 3,
        "tokens": 100,
        "dropped": {"answer cut off": 1} if iteration == 1 else {},
        "heldout_loss_before": 2.5 if iteration == 1 else 2.0,
        "heldout_loss_after": 2.0 if iteration == 1 else 1.75,
    }
    spec = {
        "model_dir": "/home/ada-example/base",
        "output_dir": "/home/ada-example/out",
        "base_dir": "/home",
        "epochs": 3,
    }
    store.write_bytes(f"{folder}/model/training.json", json.dumps({"metrics": metrics, "spec": spec}).encode())
    store.write_bytes(f"{folder}/model/canary.json", b"{}")
    store.write_json(f"{folder}/manifest.json", metrics)


def _judged(store: RunStore, folder: str, pool: str, iteration: int) -> None:
    parts = _parts(store, pool)
    place = rows = 0
    for part in range(parts):
        said, verdicts = [], []
        answered = store.stage(f"answers-{pool}").read_part(part).to_pylist()
        for row in answered:
            said.append({"id": row["id"], "text": f"Student: {place}", "status": "ok", "version": f"v{iteration}"})
            verdict: dict[str, Any] = {"id": row["id"], "status": "quarantined", "reason": "no answer"}
            if row["status"] == "ok":
                low = float(place % 3 + 6)
                verdict = {
                    "id": row["id"],
                    "status": "ok",
                    "teacher_score": 8.0,
                    "student_score": low,
                    "teacher_first": [8.0, low],
                    "student_first": [8.0, low],
                    "review_teacher_first": HOSTILE,
                    "model": "teacher-1",
                    "endpoint": "api",
                    "calls": ["one", "two"],
                }
            verdicts.append(verdict)
            place += 1
        rows += len(verdicts)
        store.stage(f"{folder}/student").write_part(part, table(said, ANSWER))
        store.stage(f"{folder}/verdicts").write_part(part, table(verdicts, VERDICT))
    judged = {"rows": rows, "parts": parts, "quarantined": {}, "hard": 4, "easy": 2, "relative_quality": QUALITY}
    store.write_json(f"{folder}/verdicts/manifest.json", judged)
    store.write_json(f"{folder}/student/manifest.json", {"rows": rows, "parts": parts})

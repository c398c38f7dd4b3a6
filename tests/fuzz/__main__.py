"""Fuzz: ``python -m tests.fuzz [TARGET …] [--seconds N] [--corpus FOLDER]``; ``--input FILE`` repeats one input.

Each target runs in its own process, one after the other, until its first finding: the input is saved in the corpus'
folder `findings`, and the command that repeats it is printed. Needs atheris (the extra `fuzz`), except to repeat an
input.
"""

from __future__ import annotations

import argparse
import importlib
import resource
import subprocess
import sys
from pathlib import Path

from tests.fuzz.target import TARGETS

LONGEST_S, MOST_MB = 60, 4096
"""An input that takes more time or memory is a finding. Parsers take milliseconds, but the machine may be busy."""


def fuzz(name: str, module: str, corpus: Path, seconds: int) -> None:
    """Fuzz one target in this process, which atheris ends. Imports only its module, because instrumenting is slow."""
    import atheris

    with atheris.instrument_imports(include=["lion_ray"]):
        importlib.import_module(module)
    one = TARGETS[name]
    seen, findings = corpus / name, corpus / "findings"
    seen.mkdir(parents=True, exist_ok=True)
    findings.mkdir(exist_ok=True)
    for number, data in enumerate(one.seeds()):
        (seen / f"seed-{number}").write_bytes(data)
    # Larger allocations fail: a Parquet file of 400 bytes can make Arrow allocate 64 GB.
    resource.setrlimit(resource.RLIMIT_AS, (3 * MOST_MB * 2**20,) * 2)
    options = (f"max_total_time={seconds}", f"timeout={LONGEST_S}", f"rss_limit_mb={MOST_MB}", "print_final_stats=1")
    prefix = f"-artifact_prefix={findings}/{name}-"
    atheris.Setup([sys.argv[0], str(seen), prefix, *(f"-{option}" for option in options)], one)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description="fuzz the parsers of foreign bytes")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="default: all")
    parser.add_argument("--seconds", type=int, default=600, help="seconds per target")
    parser.add_argument("--corpus", type=Path, default=Path(".fuzz"), help="folder of inputs (.fuzz)")
    parser.add_argument("--input", type=Path, help="run one target only on this file")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        fuzz(options.targets[0], options.here, options.corpus, options.seconds)
        return 0
    importlib.import_module("tests.fuzz.targets")

    names = options.targets or list(TARGETS)
    if wrong := [name for name in names if name not in TARGETS]:
        parser.error(f"no target is called {wrong[0]!r}; use one of {', '.join(TARGETS)}")
    if options.input is not None:
        TARGETS[names[0]](options.input.read_bytes())
        return 0
    failed = []
    for name in names:
        print(f"--- {name}", flush=True)
        command = [
            sys.executable,
            "-m",
            "tests.fuzz",
            name,
            "--here",
            TARGETS[name].parse.__module__,
            "--seconds",
            str(options.seconds),
        ]
        if subprocess.run([*command, "--corpus", str(options.corpus)]).returncode:
            failed.append(name)
            print(
                f"--- {name} failed: python -m tests.fuzz {name} --input {options.corpus}/findings/{name}-…", flush=True
            )
    print(f"{len(names)} targets, {len(failed)} failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

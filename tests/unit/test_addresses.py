"""Addresses: names go into a URL's path, options stay behind it, and secrets stay out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lion_ray.config.endpoints import EndpointConfig
from lion_ray.config.file import load_config
from lion_ray.core.addresses import below, secret_in, without_secrets
from lion_ray.core.errors import ConfigError, InfrastructureError
from lion_ray.core.store import RunStore
from lion_ray.gateway.journal.folder import Folder
from lion_ray.gateway.wire import redact
from lion_ray.pipeline.preflight import keys_in_clear
from lion_ray.pipeline.ray_cluster import keep_token_private
from lion_ray.pipeline.runner import run_root

SECRET = "Zx9verysecret"
OPTIONS = ("region=us-east-1", "endpoint_override=127.0.0.1%3A9", "scheme=http")


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        ("runs", "runs/demo"),
        ("/data/runs/", "/data/runs/demo"),
        ("s3://b/runs", "s3://b/runs/demo"),
        ("s3://b/runs/?region=eu-west-1", "s3://b/runs/demo?region=eu-west-1"),
        ("s3://b?a=1&b=x%2Fy", "s3://b/demo?a=1&b=x%2Fy"),
        ("gs://anonymous@b/r?retry=2", "gs://anonymous@b/r/demo?retry=2"),
    ],
)
def test_a_name_goes_before_the_options(root: str, expected: str) -> None:
    assert below(root, "demo") == expected


def test_a_run_s_folder_is_its_own_whatever_the_options() -> None:
    root = run_root(f"s3://b/runs?{'&'.join(OPTIONS)}", "demo")
    store = RunStore(root)
    assert store.path() == "b/runs/demo"
    assert store.address("journal") == f"s3://b/runs/demo/journal?{'&'.join(OPTIONS)}"
    assert Folder.at(store.address("journal")).path == "b/runs/demo/journal"


SECRETS = [
    f"s3://AKIA:{SECRET}@bucket/runs",
    f"s3://bucket/runs?region=x&access_key={SECRET}",
    f"s3://bucket/runs?secret_key={SECRET}",
    f"abfs://container@account/x?sas_token={SECRET}",
    f"abfs://:{SECRET}@account/x",
    f"https://user:{SECRET}@api.example/v1",
    f"https://api.example/v1?key={SECRET}",
    f"https://api.example/v1?api-key={SECRET}",
    f"https://api.example/v1?subscription-key={SECRET}&api-version=1",
]


@pytest.mark.parametrize("url", SECRETS)
def test_a_secret_in_an_address_is_found_and_not_repeated(url: str) -> None:
    what = secret_in(url)
    assert what
    assert SECRET not in what + without_secrets(url)


@pytest.mark.parametrize(
    "url",
    [
        "runs",
        "s3://b/r?region=eu-west-1&endpoint_override=h%3A9000&scheme=http",
        "gs://anonymous@b/r",
        "abfs://container@account.dfs.core.windows.net/r",
        "https://x.openai.azure.example/openai/deployments/d?api-version=2024-10-21",
        "http://[::1]:8000/v1",
        "https://a:b",
    ],
)
def test_other_options_are_none(url: str) -> None:
    assert secret_in(url) is None


def test_no_command_takes_a_secret_in_an_address(capsys: pytest.CaptureFixture[str]) -> None:
    for opened in (RunStore, Folder.at):
        with pytest.raises((ConfigError, InfrastructureError), match="leave it to the environment") as caught:
            opened(f"s3://AKIA:{SECRET}@bucket/runs")
        assert SECRET not in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="name it in api_key_env"):
        EndpointConfig(model="m", base_url=f"https://user:{SECRET}@api.example/v1")


@pytest.mark.parametrize(
    ("url", "clear"),
    [
        ("http://teacher.example/v1", True),
        ("HTTP://10.0.0.7:8000/v1", True),
        ("http://[2001:db8::1]/v1", True),
        ("https://teacher.example/v1", False),
        ("http://127.0.0.1:8000/v1", False),
        ("http://127.1.2.3/v1", False),
        ("http://[::1]:8000/v1", False),
        ("http://localhost:8000/v1", False),
        ("http://localhost.example/v1", True),
    ],
)
def test_a_key_over_plain_http_to_another_machine_is_told(tmp_path: Path, url: str, clear: bool) -> None:
    (tmp_path / "pool.jsonl").write_text('{"instruction": "a"}\n')
    (tmp_path / "run.yaml").write_text(
        "run_name: r\ndata: {pool: pool.jsonl}\nstudent: {model: ./s}\n"
        f"endpoints: {{default: {{model: m, base_url: '{url}'}}}}\n"
    )
    said = keys_in_clear(load_config(tmp_path / "run.yaml", []))
    assert len(said) == clear
    assert not clear or "OPENAI_API_KEY goes to " in said[0]
    assert keys_in_clear(load_config(tmp_path / "run.yaml", ["endpoints.default.api_key_env=null"])) == []


@pytest.mark.parametrize("before", [0o644, 0o640, 0o600])
def test_ray_s_token_is_its_user_s_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    keep_token_private()
    path = tmp_path / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text("token")
    path.chmod(before)
    keep_token_private()
    assert path.stat().st_mode & 0o777 == 0o600


KEY = 'sk-A9/z+"x'


def escaped(how: str) -> str:
    return {
        "plain": KEY,
        "json": json.dumps(KEY)[1:-1],
        "php": json.dumps(KEY)[1:-1].replace("/", "\\/"),
        "unicode": "".join(f"\\u{ord(one):04x}" for one in KEY),
        "some of it": "\\u0073k\\u002DA9\\u002fz" + json.dumps(KEY[7:])[1:-1],
        "json in json": json.dumps("".join(f"\\u{ord(one):04X}" for one in KEY))[1:-1],
        "html": "".join(f"&#{ord(one)};" for one in KEY),
        "html in hex": "".join(f"&#x{ord(one):x};" for one in KEY),
        "url": "".join(f"%{ord(one):02X}" for one in KEY),
        "url twice": "".join(f"%25{ord(one):02x}" for one in KEY),
        "python": "".join(f"\\x{ord(one):02x}" for one in KEY),
    }[how]


@pytest.mark.parametrize(
    "how",
    [
        "plain",
        "json",
        "php",
        "unicode",
        "some of it",
        "json in json",
        "html",
        "html in hex",
        "url",
        "url twice",
        "python",
    ],
)
def test_an_echo_of_the_key_is_cut_out_however_it_is_escaped(how: str) -> None:
    body = f'{{"error": "bad key {escaped(how)}!", "ok": "caf\\u00e9 100% \\/ &#233;"}}'.encode()
    found = redact(body, KEY)
    assert found == b'{"error": "bad key ***!", "ok": "caf\\u00e9 100% \\/ &#233;"}'
    assert redact(b"sk-A9 100% \\u00e9", KEY) == b"sk-A9 100% \\u00e9"

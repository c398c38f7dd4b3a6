"""Addresses: names go into a URL's path, options stay behind it, and secrets stay out."""

from __future__ import annotations

import pytest

from lion_ray.addresses import below, secret_in, without_secrets
from lion_ray.config.endpoints import EndpointConfig
from lion_ray.errors import ConfigError, InfrastructureError
from lion_ray.gateway.journal.folder import Folder
from lion_ray.runner import run_root
from lion_ray.store import RunStore

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

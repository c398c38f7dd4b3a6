"""Addresses of endpoints, and the proxies on the way to them."""

from __future__ import annotations

import pytest

from lion_ray.gateway.address import Proxy, read_address

VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("base_url", "chat"),
    [
        ("https://api.example/v1", "https://api.example/v1/chat/completions"),
        (" https://api.example/v1// ", "https://api.example/v1/chat/completions"),
        ("https://api.example", "https://api.example/chat/completions"),
        ("https://api.example/v1/chat/completions/", "https://api.example/v1/chat/completions"),
        (
            "https://api.example/v1?api-version=1&t=a%20b",
            "https://api.example/v1/chat/completions?api-version=1&t=a%20b",
        ),
        ("https://api.example?t=1", "https://api.example/chat/completions?t=1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1/chat/completions"),
        ("http://me:pass@api.example:81/v1#x", "http://api.example:81/v1/chat/completions"),
    ],
)
def test_where_chat_completions_are(base_url: str, chat: str) -> None:
    assert read_address(base_url).chat == chat


def test_a_user_and_a_password_are_taken_out_and_not_shown() -> None:
    address = read_address("https://me:p%40ss@api.example/v1?token=secret")
    assert address.authorization == "Basic bWU6cEBzcw=="
    assert "me" not in repr(address).replace("api.example", "")
    assert "secret" not in repr(address)
    assert address.parameters == {"token": "secret"}


@pytest.mark.parametrize(
    "base_url",
    [
        "api.example/v1",
        "ftp://api.example",
        "https://",
        "https:///v1",
        "http://a:99999/v1",
        "http://a:b/v1",
        "http://a b/v1",
        "http://a/v1\x00",
        "http://[::1/v1",
        "",
    ],
)
def test_what_is_no_address(base_url: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        read_address(base_url)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "base_url", "proxy"),
    [
        ({}, "http://api.example/v1", None),
        ({"http_proxy": "http://p:3128"}, "http://api.example/v1", "http://p:3128"),
        ({"http_proxy": "http://p:3128"}, "https://api.example/v1", None),
        ({"https_proxy": "http://p:3128"}, "https://api.example/v1", "http://p:3128"),
        ({"HTTPS_PROXY": "https://p"}, "https://api.example/v1", "https://p"),
        ({"ALL_PROXY": "http://p:1"}, "https://api.example/v1", "http://p:1"),
        ({"all_proxy": "p:1"}, "http://api.example/v1", "http://p:1"),
        ({"all_proxy": "http://a", "http_proxy": "http://b"}, "http://api.example/v1", "http://b"),
        ({"all_proxy": "http://a", "no_proxy": "api.example"}, "http://api.example/v1", None),
        ({"all_proxy": "http://a", "no_proxy": ".example"}, "http://api.example:81/v1", None),
        ({"all_proxy": "http://a", "NO_PROXY": "*"}, "http://api.example/v1", None),
        ({"all_proxy": "http://a", "no_proxy": "other"}, "http://api.example/v1", "http://a"),
        ({"all_proxy": "http://a"}, "http://127.0.0.1:1/v1", None),
        ({"all_proxy": "http://a"}, "http://localhost/v1", None),
    ],
)
def test_proxies(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], base_url: str, proxy: str | None) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = read_address(base_url).proxy
    assert (found and found.url) == proxy


def test_a_proxys_password_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:s%3Acret@p:3128")
    found = read_address("https://api.example/v1").proxy
    assert found == Proxy("http://p:3128", ("me", "s:cret"))
    assert "cret" not in repr(found)


@pytest.mark.parametrize("value", ["socks5://me:secret@p:1080", "http://p:99999", "http://"])
def test_a_proxy_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ALL_PROXY", value)
    with pytest.raises(ValueError, match="ALL_PROXY") as caught:
        read_address("https://api.example/v1")
    assert "secret" not in str(caught.value)

"""Addresses of storage and of APIs: joins names to URLs, and refuses URLs with secrets.

Invariants:
- A name is appended to a URL's path, before its options.
- A URL with a password or a key in it is refused, because addresses are shown, logged and stored.

This module opens nothing.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import parse_qsl, urlsplit

_SECRET = re.compile(
    r"(^|[-_.])(key|secret|token|password|passwd|pwd|sig|signature|sas|credential|credentials)$|^apikey$|accountkey$",
    re.IGNORECASE,
)


def below(root: str, name: str) -> str:
    """The address of `name` in the folder `root`, a path or a URL whose options (``?region=…``) stay its own."""
    if "://" not in root:
        return f"{root.rstrip('/')}/{name}"
    place, mark, options = root.partition("?")
    return f"{place.rstrip('/')}/{name}{mark}{options}"


def secret_in(url: str) -> str | None:
    """A description of the secret in a URL, without the secret itself. Returns None if there is none."""
    if "://" not in url:
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None  # not a URL: opening it raises the error
    if ":" in parts.netloc.rpartition("@")[0]:
        return "a user's password (USER:PASSWORD@)"
    for name, _ in parse_qsl(parts.query, keep_blank_values=True):
        if _SECRET.search(name):
            return f"a key (?{name}=)"
    return None


def in_clear(url: str) -> bool:
    """Whether requests to an API's address are unencrypted: plain http to another machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    if parts.scheme.lower() != "http" or not host:
        return False
    return not is_loopback(host)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine's loopback: neither another machine nor a proxy can reach it."""
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def without_secrets(url: str) -> str:
    """A URL that is safe to show: without user, password, options and fragment. Accepts any text, for use in errors."""
    scheme, mark, rest = url.partition("://")
    if not mark:
        return url
    place = re.split("[?#]", rest, maxsplit=1)[0]
    host, slash, path = place.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def check_storage(url: str) -> str:
    """Returns the URL unchanged. Raises ValueError if it holds a secret."""
    return _without_a_secret(
        url,
        "leave it to the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, …) "
        "or to the machine's role",
    )


def check_api(url: str) -> str:
    """Returns the URL unchanged. Raises ValueError if it holds a secret."""
    return _without_a_secret(url, "put the key into an environment variable and name it in api_key_env")


def _without_a_secret(url: str, advice: str) -> str:
    if (what := secret_in(url)) is not None:
        raise ValueError(
            f"{without_secrets(url)}: the address holds {what}, and addresses are logged and stored; {advice}"
        )
    return url

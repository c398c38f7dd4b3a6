"""The way to an endpoint: peers that say nothing, names that nobody knows, proxies, and whose credentials are sent."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from lion_ray.config import EndpointConfig
from lion_ray.core.errors import EndpointError
from lion_ray.gateway.address import KEEPALIVE_IDLE_S
from lion_ray.gateway.calls import Completion, Failure
from lion_ray.gateway.client import Client
from tests.gateway.support import QuickTime, call
from tests.raw_api import chat, error, raw_api
from tests.stub_api import StubAPI

Connect = Callable[..., Client]
HOST = "api.lion.test"
KEY = "sk-connections-7d1b"


class Names:
    """A name service that knows HOST as this machine, and fails while `failing`."""

    def __init__(self, real: Callable[..., Any]) -> None:
        self._real = real
        self.failing = False
        self.asked = 0

    def __call__(self, host: Any, *args: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name != HOST:
            return self._real(host, *args, **options)
        self.asked += 1
        if self.failing:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return self._real("127.0.0.1", *args, **options)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    for variable in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    service = Names(socket.getaddrinfo)
    monkeypatch.setattr(socket, "getaddrinfo", service)
    return service


def at_host(base_url: str) -> str:
    """The same address by HOST's name, which is not loopback's: proxies and ~/.netrc apply to it."""
    return base_url.replace("127.0.0.1", HOST)


# --- a peer that says nothing


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/net/tcp")
async def test_a_peer_that_is_gone_is_noticed_while_an_answer_is_waited_for(stub: StubAPI, connect: Connect) -> None:
    stub.gate.clear()
    task = asyncio.create_task(connect().complete(call("Still there?")))
    await stub.until(lambda stats: stats["in_flight"] == 1)
    port = urlsplit(stub.base_url).port
    timers: list[tuple[int, float]] = []
    while not any(kind == 2 for kind, _ in timers):  # tcp(7), proc(5): 2 is keep-alive's; 1 while data is on the way
        await asyncio.sleep(0)
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        mine = [row for row in rows if row[2].endswith(f":{port:04X}") and row[3] == "01"]
        timers = [(int(row[5][:2], 16), int(row[5][3:], 16) / 100) for row in mine]
        assert mine
    assert all(left_s <= KEEPALIVE_IDLE_S + 1 for kind, left_s in timers if kind == 2)
    stub.gate.set()
    assert isinstance(await task, Completion)


async def test_a_peer_that_takes_a_request_and_says_nothing(connect: Connect) -> None:
    assert EndpointConfig(model="m").first_byte_timeout_s == 300
    held: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: held.append(writer), "127.0.0.1", 0)
    async with server:
        time = QuickTime()
        base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        settings = {"first_byte_timeout_s": 0.1, "max_attempts": 2}
        client = connect(settings, base_url=base_url, clock=time.clock, sleep=time.sleep)
        outcome = await client.complete(call("Hello?"))
        for writer in held:
            writer.close()
    assert isinstance(outcome, Failure)
    assert outcome.reason == "timed out"


# --- names that nobody knows


async def test_names_that_fail_for_a_while_cost_no_row(names: Names, connect: Connect) -> None:
    class Later(QuickTime):
        async def sleep(self, seconds: float) -> None:
            await super().sleep(seconds)
            names.failing = names.failing and self.now < until

    time, until = Later(), 5.0
    names.failing = True
    async with raw_api(lambda *_: chat()) as api:
        settings = {"breaker_failures": 2, "max_attempts": 10}
        client = connect(settings, base_url=at_host(api.base_url), clock=time.clock, sleep=time.sleep)
        # At the start, within the attempts of a call; in the middle, for as long as an endpoint may be down.
        until = 2.0
        assert isinstance(await client.complete(call("First?")), Completion)
        assert names.asked > 1
        names.failing, until = True, time.now + 1800
        found = await asyncio.gather(*(client.complete(call(f"Question {n}")) for n in range(10)))
    assert all(isinstance(one, Completion) for one in found)


async def test_a_name_that_nobody_knows_is_told_in_one_line(names: Names, connect: Connect) -> None:
    names.failing = True
    time = QuickTime()
    client = connect({"max_attempts": 3}, base_url=f"http://{HOST}/v1", clock=time.clock, sleep=time.sleep)
    with pytest.raises(EndpointError, match=rf"cannot be reached at http://{HOST}/v1 after 3 attempts") as caught:
        await client.complete(call("Hello?"))
    assert "name resolution" in str(caught.value)


# --- proxies


class ProxyServer:
    """A proxy of HTTP: forwards to whatever port a host name has, and opens tunnels to `tunnel_port`."""

    def __init__(self, port: int, refuse: bytes | None = None) -> None:
        self._port, self._refuse = port, refuse
        self.heads: list[str] = []
        self.seen = b""
        self.url = ""

    @contextlib.asynccontextmanager
    async def running(self, certificate: ssl.SSLContext | None = None) -> AsyncIterator[ProxyServer]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=certificate)
        self.url = f"http{'s' if certificate else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head.decode())
            if self._refuse is not None:
                writer.write(b"HTTP/1.1 " + self._refuse + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            else:
                there, back = await asyncio.open_connection("127.0.0.1", self._port)
                if head.startswith(b"CONNECT"):
                    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                else:
                    back.write(head)
                await asyncio.gather(self._pipe(reader, back), self._pipe(there, writer))
            await writer.drain()
        writer.close()

    async def _pipe(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(2**16):
                self.seen += data
                target.write(data)
        target.close()


@pytest.mark.parametrize("variable", ["http_proxy", "ALL_PROXY", "all_proxy"])
async def test_an_endpoint_behind_a_proxy(
    names: Names, connect: Connect, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv("LION_TEST_KEY", KEY)
    async with raw_api(lambda *_: chat()) as api, ProxyServer(urlsplit(api.base_url).port or 0).running() as proxy:
        monkeypatch.setenv(variable, proxy.url.replace("http://", "http://me:p%40ss@"))
        client = connect({"api_key_env": "LION_TEST_KEY"}, base_url=f"http://{HOST}/v1")
        assert isinstance(await client.complete(call("Hello?")), Completion)
        await client.close()
        assert api.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert proxy.heads[0].startswith(f"POST http://{HOST}/v1/chat/completions HTTP/1.1")
    assert "proxy-authorization: basic bwu6cebzcw==" in proxy.heads[0].lower()
    assert names.asked == 0  # the proxy finds the way


@pytest.mark.parametrize("answer", [b"407 Proxy Authentication Required", b"502 Bad Gateway"])
async def test_a_proxy_that_opens_no_tunnel_is_named(
    names: Names, connect: Connect, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    time = QuickTime()
    async with ProxyServer(0, answer).running() as proxy:
        monkeypatch.setenv("https_proxy", proxy.url.replace("http://", "http://me:secret@"))
        client = connect({"max_attempts": 2}, base_url=f"https://{HOST}/v1", clock=time.clock, sleep=time.sleep)
        with pytest.raises(EndpointError, match="cannot be reached") as caught:
            await client.complete(call("Hello?"))
        await client.close()
    assert answer.decode()[:3] in str(caught.value)
    assert proxy.url in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_a_proxy_that_asks_for_a_password_and_one_that_is_not_there(
    names: Names, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = QuickTime()
    async with ProxyServer(0, b"407 Proxy Authentication Required").running() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        client = connect({"max_attempts": 2}, base_url=f"http://{HOST}/v1", clock=time.clock, sleep=time.sleep)
        with pytest.raises(EndpointError, match="HTTP proxy requires a user"):
            await client.complete(call("Hello?"))
        await client.close()
    with pytest.raises(EndpointError, match=f"through the proxy {proxy.url}"):
        await client_again(connect, time).complete(call("Hello?"))


def client_again(connect: Connect, time: QuickTime) -> Client:
    return connect({"max_attempts": 2}, base_url=f"http://{HOST}/v1", clock=time.clock, sleep=time.sleep)


async def test_a_proxy_of_another_kind_is_told_before_anything_is_sent(
    names: Names, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://me:secret@127.0.0.1:1080")
    with pytest.raises(EndpointError, match="ALL_PROXY") as caught:
        connect(base_url=f"https://{HOST}/v1")
    assert "secret" not in str(caught.value)
    connect(base_url="http://127.0.0.1:1/v1")  # loopback needs no proxy


def certificates(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """An authority's certificate, and a server's context for HOST and 127.0.0.1 that it signed (itself)."""
    x509 = pytest.importorskip("cryptography.x509")
    from ipaddress import ip_address

    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST)])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName(HOST), x509.IPAddress(ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, secret = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, secret)
    return certificate, context


@pytest.mark.parametrize(("scheme", "user"), [("http", "me:p%40ss@"), ("http", ""), ("https", "me:p%40ss@")])
async def test_a_tunnel_through_a_proxy_which_sees_nothing(
    names: Names, connect: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scheme: str, user: str
) -> None:
    certificate, context = certificates(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("LION_TEST_KEY", KEY)
    async with raw_api(lambda *_: chat(), context) as api:
        async with ProxyServer(urlsplit(api.base_url).port or 0).running(
            context if scheme == "https" else None
        ) as proxy:
            monkeypatch.setenv("https_proxy", proxy.url.replace("://", f"://{user}"))
            client = connect({"api_key_env": "LION_TEST_KEY"}, base_url=f"https://{HOST}/v1")
            assert isinstance(await client.complete(call("a secret question")), Completion)
            await client.close()
        assert api.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert proxy.heads[0].startswith(f"CONNECT {HOST}:443 HTTP/1.1")
    assert ("proxy-authorization: basic bwu6cebzcw==" in proxy.heads[0].lower()) == bool(user)
    told = "".join(proxy.heads).encode() + proxy.seen
    assert KEY.encode() not in told
    assert b"secret question" not in told


# --- whose credentials are sent


@pytest.mark.parametrize("entry", ["default login me password netrc-secret\n", f"machine {HOST} login me password x\n"])
async def test_a_netrc_file_is_not_asked(
    names: Names, connect: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, entry: str
) -> None:
    (tmp_path / "netrc").write_text(entry)
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("LION_TEST_KEY", KEY)
    async with raw_api(lambda *_: chat()) as api:
        for settings in ({"api_key_env": "LION_TEST_KEY"}, {}):
            client = connect(settings, base_url=at_host(api.base_url))
            assert isinstance(await client.complete(call(f"Hello {settings}?")), Completion)
        given = [headers.get("Authorization") for headers in api.headers]
    assert given[0] == f"Bearer {KEY}"
    assert given[1] in (None, "Bearer none")


async def test_a_user_and_a_password_in_the_address(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LION_TEST_KEY", KEY)
    async with raw_api(lambda *_: error(401, "go away")) as api:
        address = api.base_url.replace("http://", "http://me:p%40ss-word@")
        with pytest.raises(EndpointError, match="needs a key") as refused:
            await connect(base_url=address).complete(call("Hello?"))
        assert api.headers[0]["Authorization"] == "Basic bWU6cEBzcy13b3Jk"
        # A key as well: only one of them can be sent, so nothing is.
        with pytest.raises(EndpointError, match="only one can be sent") as both:
            connect({"api_key_env": "LION_TEST_KEY"}, base_url=address)
        assert api.requests == 1
    for told in (str(refused.value), str(both.value), caplog.text):
        assert "ss-word" not in told
        assert KEY not in told


async def test_a_query_goes_behind_the_path(connect: Connect) -> None:
    async with raw_api(lambda *_: chat()) as api:
        client = connect(base_url=api.base_url + "/?api-version=2024-10-21&tenant=a%2Fb")
        assert isinstance(await client.complete(call("Hello?")), Completion)
        asked = urlsplit(api.paths[0])
    assert asked.path == "/v1/chat/completions"
    assert parse_qsl(asked.query) == [("api-version", "2024-10-21"), ("tenant", "a/b")]

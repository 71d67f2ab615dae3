"""One request of JSON over HTTP, with time-outs, and errors that say whether to try again."""

import functools
import http.client
import json
import socket
import ssl
import time
import urllib.error
import urllib.request
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from rl_lightning.core.errors import ConfigurationError, shortened

MOST_BYTES = 16 * 2**20  # of an answer
# Overload, and what proxies say while a server restarts. 529 is Anthropic's word for it.
TRY_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
# Nobody's next question would fare better.
HOPELESS = frozenset({401, 402, 403, 404, 405, 407})


class RequestError(Exception):
    """A request without an answer.

    Args:
        reason: In words.
        again: Whether the same request may succeed later.
        hopeless: Whether no other request would succeed, either.
        wait: Seconds that the server asks to wait; None: it does not say.
    """

    def __init__(
        self, reason: str, again: bool = False, hopeless: bool = False, wait: float | None = None
    ) -> None:
        super().__init__(reason)
        self.again, self.hopeless, self.wait = again, hopeless, wait


def check_url(url: str) -> str:
    """A base URL without the slash at its end.

    Raises:
        ConfigurationError: If it is none, or holds what may be a secret: those end in logs.
    """
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        known, parts = False, urlsplit("")
    if not known:
        raise ConfigurationError(
            f"base_url must be an address such as https://host/v1, not {shortened(repr(url), 80)}"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigurationError(
            "base_url must hold neither a user's name nor a query: it is written to logs and "
            "checkpoints; put the key into an environment variable, and its name into api_key_env"
        )
    return url.rstrip("/")


def post_json(
    url: str, body: Any, key: str | None, connect_timeout: float, read_timeout: float
) -> Any:
    """POST plain data, and return the plain data of the answer.

    The key goes to this address alone: redirections are not followed.

    Args:
        url: Where to.
        body: Plain data.
        key: Sent as a bearer token; None for none.
        connect_timeout: Seconds until there is a connection.
        read_timeout: Seconds from then until the answer is complete.

    Raises:
        RequestError: If there is no such answer, whatever the reason.
    """
    request = urllib.request.Request(url, json.dumps(body).encode(), method="POST")
    request.add_header("Content-Type", "application/json")
    request.add_header("User-Agent", "rl-lightning")
    if key is not None:
        request.add_unredirected_header("Authorization", f"Bearer {key}")
    opener = _opener(connect_timeout, read_timeout)
    end = time.monotonic() + connect_timeout + read_timeout
    try:
        with opener.open(request, timeout=connect_timeout) as response:
            raw = _read(response, end)
    except urllib.error.HTTPError as error:
        with error:
            raise _refused(error) from None
    except RequestError:
        raise
    except Exception as error:  # sockets, TLS, half an answer: each in many ways
        reason = getattr(error, "reason", error)
        certificate = isinstance(reason, ssl.SSLCertVerificationError)
        if isinstance(reason, TimeoutError):
            told = f"no answer within {connect_timeout:g} + {read_timeout:g} s"
        else:
            told = f"{type(reason).__name__}: {reason}" if str(reason) else type(reason).__name__
        # The name alone: a message may hold what was sent.
        if isinstance(error, ValueError):
            told = f"the request cannot be sent ({type(error).__name__})"
        raise RequestError(
            told, again=not certificate and not isinstance(error, ValueError), hopeless=certificate
        ) from None
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise RequestError("the answer is no JSON", again=True) from None


@functools.cache  # certificates take longer to read than a small answer
def _opener(connect: float, read: float) -> urllib.request.OpenerDirector:
    handlers = _NoRedirect(), _Plain(connect, read), _Secure(connect, read)
    return urllib.request.build_opener(*handlers)


def _read(response: Any, end: float) -> bytes:
    """All of an answer, however slowly it drips, until the time is up."""
    raw = bytearray()
    while piece := response.read1(65536):
        raw += piece
        if len(raw) > MOST_BYTES:
            raise RequestError(f"the answer is larger than {MOST_BYTES >> 20} MiB")
        if time.monotonic() > end:
            raise RequestError("the answer was not complete in time", again=True)
    if response.length:  # `read1` does not mind
        raise RequestError("the connection ended in the middle of the answer", again=True)
    return bytes(raw)


def _refused(error: urllib.error.HTTPError) -> RequestError:
    try:
        told = shortened(error.read(2000).decode("utf-8", "replace"))
    except Exception:
        told = ""
    return RequestError(
        f"status {error.code}{told and ': '}{told}",
        again=error.code in TRY_AGAIN,
        hopeless=error.code in HOPELESS or 300 <= error.code < 400,
        wait=retry_after(error.headers.get("Retry-After")),
    )


def retry_after(value: str | None) -> float | None:
    """The seconds that a `Retry-After` header asks for, as seconds or as a date."""
    if value is None:
        return None
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError):
        return None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class _Plain(urllib.request.HTTPHandler):
    def __init__(self, connect: float, read: float) -> None:
        super().__init__()
        self._timeouts = connect, read

    def http_open(self, req: Any) -> Any:
        return self.do_open(_connection(http.client.HTTPConnection, *self._timeouts), req)


class _Secure(urllib.request.HTTPSHandler):
    def __init__(self, connect: float, read: float) -> None:
        super().__init__(context=ssl.create_default_context())
        self._timeouts = connect, read

    def https_open(self, req: Any) -> Any:
        made = _connection(http.client.HTTPSConnection, *self._timeouts)
        return self.do_open(made, req, context=self._context)  # type: ignore[attr-defined]


def _connection(kind: Any, connect: float, read: float) -> Any:
    """A class of connections with a time-out of their own for reading."""

    class Connection(kind):
        def connect(self) -> None:
            self.timeout = connect
            super().connect()
            if isinstance(self.sock, socket.socket):
                self.sock.settimeout(read)

    return Connection

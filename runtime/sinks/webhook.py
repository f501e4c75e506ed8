"""Results as HTTP POST requests."""

from __future__ import annotations

import base64
import http.client
import secrets
import ssl
import time
import urllib.error
import urllib.request

from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.files import reason
from edgead.runtime.frame import Frame, Result
from edgead.runtime.sinks import Sink, selects
from edgead.runtime.sinks.result_json import as_json
from edgead.runtime.uri import Endpoint, Parameters
from edgead.runtime.version import __version__

_FIRST_RETRY_S, _LAST_RETRY_S = 0.25, 15.0
# A client that is told these may try again later; any other refusal is final.
_LATER = {408, 425, 429, *range(500, 600)}


class WebhookSink(Sink):
    """Sends one JSON object a result, as ``results.jsonl`` would hold it: ``webhook+https://host/path?query#only=all``.

    What stands before the ``#`` is the address, the query included; a login in it is sent as Basic authorization.
    Parameters, after the ``#``: ``only=all`` (default), ``anomaly`` or ``rejected``; ``timeout=5s`` of one attempt;
    ``give_up=30s``, how long one result is retried, with pauses from 0.25 s doubling to 15 s, where the server cannot
    be reached, is overloaded or has an error of its own; ``token_file=FILE``, sent as Bearer authorization;
    ``ca=FILE``, the authorities that vouch for the server in place of the system's; ``proxy=http://host:port`` (none:
    the environment is not asked). An answer 2xx is success, redirects are refused. Each result has an
    ``Idempotency-Key``, the same in each attempt, by which the server can tell a repetition.
    """

    def __init__(self, location: str, parameters: Parameters) -> None:
        scheme, _, rest = location.removeprefix("webhook+").partition("://")
        self.name = parameters.where
        self.keeps_frames = False
        self._only = parameters.choice("only", "all", ("all", "anomaly", "rejected"))
        self._timeout = parameters.seconds("timeout") or 5.0
        self._give_up = parameters.seconds("give_up") or 30.0
        login, at, _ = rest.partition("/")[0].partition("?")[0].rpartition("@")
        target = rest.removeprefix(login + at)
        # Only checked here; the address is sent as it was written.
        where = Endpoint.parse(self.name, f"{login}{at}{target.partition('?')[0]}", 443 if scheme == "https" else 80)
        self._url = f"{scheme}://{target}"
        self._headers = {"Content-Type": "application/json", "User-Agent": f"edgead/{__version__}"}
        token = parameters.secret("token_file")
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        elif where.user is not None:
            pair = f"{where.user}:{where.password or ''}".encode()
            self._headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        self._run = secrets.token_hex(8)
        self._number = 0
        proxy = parameters.values.get("proxy")
        handlers: list[urllib.request.BaseHandler] = [
            _NoRedirect(),
            urllib.request.ProxyHandler({"http": proxy, "https": proxy} if proxy else {}),
        ]
        authorities = parameters.values.get("ca")
        if authorities is not None:
            try:
                trusted = ssl.create_default_context(cafile=authorities)
            except (OSError, ValueError) as error:
                raise ConfigError(f"{self.name}: cannot use ca {authorities}: {reason(error)}") from error
            handlers.append(urllib.request.HTTPSHandler(context=trusted))
        self._opener = urllib.request.build_opener(*handlers)

    def accepts(self, result: Result, frame: Frame | None) -> bool:  # noqa: ARG002
        return selects(self._only, result.decision)

    def write(self, result: Result, frame: Frame | None) -> None:  # noqa: ARG002
        self._number += 1
        headers = {**self._headers, "Idempotency-Key": f"{self._run}-{self._number}"}
        request = urllib.request.Request(self._url, as_json(result).encode(), headers, method="POST")
        ends = time.monotonic() + self._give_up
        pause = _FIRST_RETRY_S
        while (problem := self._send(request)) is not None:
            if time.monotonic() + pause > ends:
                raise DataError(problem)
            time.sleep(pause)
            pause = min(2 * pause, _LAST_RETRY_S)

    def close(self) -> None:
        self._opener.close()

    def _send(self, request: urllib.request.Request) -> str | None:
        """Try once; return what is wrong where another attempt may help, None where it arrived."""
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                answer.read(1)
        except urllib.error.HTTPError as error:
            error.close()
            problem = f"the server answers {error.code} {error.reason}"
            if error.code in _LATER:
                return problem
            raise DataError(problem) from None
        except urllib.error.URLError as error:
            cause = error.reason if isinstance(error.reason, Exception) else error
            return f"the server cannot be reached: {reason(cause)}"
        except (OSError, http.client.HTTPException) as error:
            return f"the server did not answer: {reason(error)}"
        return None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET without the result."""

    def redirect_request(self, *_: object) -> None:
        return None

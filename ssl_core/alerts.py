"""Messages to people: a webhook or an e-mail, tried a few times, never an exception.

Secrets come from the environment only and are neither logged nor returned:

- ``env:NAME`` as an address: the real one is in variable NAME (many webhook URLs are secrets);
- HEADWATER_WEBHOOK_TOKEN: sent as ``Authorization: Bearer``, over https or to this machine only;
- HEADWATER_SMTP (host:port), HEADWATER_SMTP_FROM, and with TLS HEADWATER_SMTP_USER and
  HEADWATER_SMTP_PASSWORD. Port 465 speaks TLS at once, others STARTTLS if the server can.
"""

from __future__ import annotations

import http.client
import json
import os
import smtplib
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.message import EmailMessage
from typing import Any
from urllib.parse import unquote, urlsplit

TRIES, WAIT, TIMEOUT = 3, 0.5, 10.0
HERE = ("localhost", "127.0.0.1", "::1")


class Undelivered(Exception):
    """Why an address cannot be served at all: trying again will not help."""


class _Stay(urllib.request.HTTPRedirectHandler):
    """A redirect could carry the token to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


def shown(address: str) -> str:
    """The address as it may be logged: of a URL only scheme and host."""
    parts = urlsplit(address)
    return (
        f"{parts.scheme}://{parts.hostname}/..." if parts.scheme in ("http", "https") else address
    )


def resolve(address: str) -> str:
    """The real address.

    Raises:
        Undelivered: a variable that is not set, or a scheme other than http, https and mailto.
    """
    if address.startswith("env:"):
        name = address.removeprefix("env:")
        found = os.environ.get(name, "")
        if not found:
            raise Undelivered(f"environment variable {name} is not set")
        address = found
    if urlsplit(address).scheme not in ("http", "https", "mailto"):
        raise Undelivered("deploy.alerts takes https://..., mailto:... and env:NAME")
    return address


def _post(url: str, subject: str, text: str, about: Mapping[str, Any]) -> None:
    # "text" is what Slack, Mattermost and Teams show.
    body = json.dumps({"text": f"{subject}\n{text}", "event": dict(about)}, default=str).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "headwater"}
    parts, token = urlsplit(url), os.environ.get("HEADWATER_WEBHOOK_TOKEN")
    if token and (parts.scheme == "https" or parts.hostname in HERE):
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(url, body, headers, method="POST")
    with urllib.request.build_opener(_Stay).open(request, timeout=TIMEOUT):
        pass


def _mail(to: str, subject: str, text: str) -> None:
    server = os.environ.get("HEADWATER_SMTP", "")
    if not server:
        raise Undelivered("environment variable HEADWATER_SMTP is not set (host:port)")
    host, _, port = server.rpartition(":")
    message = EmailMessage()
    message["Subject"], message["To"] = subject.replace("\n", " "), to
    message["From"] = os.environ.get("HEADWATER_SMTP_FROM", "headwater@localhost")
    message.set_content(text)
    secure = ssl.create_default_context()
    user, password = (os.environ.get(f"HEADWATER_SMTP_{n}") for n in ("USER", "PASSWORD"))
    client: smtplib.SMTP
    if port == "465":
        client = smtplib.SMTP_SSL(host, 465, timeout=TIMEOUT, context=secure)
    else:
        client = smtplib.SMTP(host, int(port), timeout=TIMEOUT)
    with client:
        if port != "465":
            client.ehlo()
            if client.has_extn("starttls"):
                client.starttls(context=secure)
            elif user:
                raise Undelivered(f"{host} offers no TLS: a password is not sent in the clear")
        if user and password:
            client.login(user, password)
        client.send_message(message)


def _once(address: str, subject: str, text: str, about: Mapping[str, Any]) -> None:
    real = resolve(address)
    if real.startswith("mailto:"):
        _mail(unquote(real.removeprefix("mailto:")), subject, text)
    else:
        _post(real, subject, text, about)


def _why(error: Exception) -> str:
    """What went wrong, without any address: library messages may repeat a URL or a password."""
    if isinstance(error, Undelivered):
        return str(error)
    code = getattr(error, "code", None) or getattr(error, "smtp_code", None)
    return f"{type(error).__name__}{f' {code}' if code else ''}"


def send(address: str, subject: str, text: str, about: Mapping[str, Any]) -> str | None:
    """Deliver one message; None, or why it could not be. Never raises.

    What may pass (no connection, a busy server) is tried again; a refusal (4xx but 429) is not.
    """
    why = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(WAIT * 2 ** (attempt - 1))
        try:
            _once(address, subject, text, about)
            return None
        except Undelivered as error:
            return _why(error)
        except urllib.error.HTTPError as error:
            why = _why(error)
            error.close()
            if error.code < 500 and error.code != 429:
                return why
        except (OSError, ValueError, http.client.HTTPException, smtplib.SMTPException) as error:
            why = _why(error)
    return f"{why}, {TRIES} times"

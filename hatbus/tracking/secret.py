"""Keeps passwords, keys and tokens out of what is written, said or delivered."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Final

from hatbus.errors import JobError

HIDDEN: Final = "***"
_IN_URL: Final = re.compile(r"([a-zA-Z][\w+.-]*://)[^/\s@?#]+@")
_IN_QUERY: Final = re.compile(
    r"([?&](?:[\w-]*token|api_?key|password|secret|sig(?:nature)?)=)[^&\s#'\"]+", re.IGNORECASE
)
_NAMES: Final = re.compile(
    r"(^|[_.-])(api_?key|secret(_?key)?|access_?key|password|passwd|credentials?)$", re.IGNORECASE
)
_TOKEN: Final = re.compile(r"token$", re.IGNORECASE)
_OF_ENVIRONMENT: Final = re.compile(r"KEY$|TOKEN$|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
_LONG: Final = 16
"""Characters of a token that lets somebody in; ``"<pad>"`` is another kind."""
_SHORTEST: Final = 6


def redacted(text: str) -> str:
    """A text without what lets somebody in.

    Args:
        text: any, such as the message of a service's client.

    Returns:
        The same, with ``***`` for user and password in an address, for tokens in its query, and for
        the values of environment variables that are named like a key, token, secret or password.
    """
    text = _IN_QUERY.sub(rf"\1{HIDDEN}", _IN_URL.sub(rf"\1{HIDDEN}@", text))
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _OF_ENVIRONMENT.search(name):
            text = text.replace(value, HIDDEN)
    return text


def without_secrets(table: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested tables in which ``***`` stands for what is named like a secret.

    Args:
        table: such as a job's; its texts are redacted too.
    """
    return {str(name): _without(str(name), value) for name, value in table.items()}


def _without(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return without_secrets(value)
    if isinstance(value, (list, tuple)):
        return [_without(name, one) for one in value]
    if not isinstance(value, str):
        return value
    if _NAMES.search(name) or (_TOKEN.search(name) and len(value) >= _LONG):
        return HIDDEN
    return redacted(value)


def refuse_credentials(option: str, address: str, instead: str) -> None:
    """Refuses an address that holds a password or token: options are kept in the run's folder.

    Args:
        option: its name, with the plugin before it.
        address: what was given.
        instead: where such a thing belongs, such as an environment variable.

    Raises:
        JobError: it holds one; the message does not.
    """
    shown = redacted(address)
    if shown != address:
        raise JobError(
            f"{option} is {shown!r} with a secret in it, and options are kept in the run's files; "
            f"put it into {instead}"
        )

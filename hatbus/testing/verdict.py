"""How a clause of the contract says that a plugin broke it."""

from __future__ import annotations

from typing import NoReturn


class ContractFailure(AssertionError):  # noqa: N818 - pytest's word for it
    """A plugin does not keep a clause; the message names the fault and the way out."""


def fail(message: str) -> NoReturn:
    """Ends a clause.

    Raises:
        ContractFailure: always.
    """
    raise ContractFailure(message)

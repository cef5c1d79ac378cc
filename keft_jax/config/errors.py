"""What goes wrong for the user, in one line."""

from __future__ import annotations


class KeftError(ValueError):
    """Something the user can put right. The message is one line: thing, value, place, remedy."""

    exit_code = 2


def check(ok: bool, path: str, value: object, remedy: str) -> None:
    """Raises a KeftError that names the dotted path, its value and the remedy."""
    if not ok:
        raise KeftError(f"{path} = {value!r}: {remedy}")

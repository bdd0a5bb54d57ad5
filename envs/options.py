"""Options of tasks that users give: read, checked, refused with what would be right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def checked_pair(
    value: str | Sequence[float],
    named: Mapping[str, tuple[float, float]],
    first: str,
    second: str,
) -> tuple[float, float]:
    """A task's ``target``: one of its named settings, or two numbers.

    Args:
        value: what the user gave.
        named: the task's settings.
        first, second: what the two numbers are; for the message.

    Raises:
        ValueError: it is neither, or a number is not above 0 and below 1.
    """
    if isinstance(value, str):
        if value not in named:
            raise ValueError(
                f"target is {value!r}; expected one of {list(named)} or two numbers "
                f"({first}, {second})"
            )
        return named[value]
    try:
        one, two = (float(number) for number in value)
    except (TypeError, ValueError):
        raise ValueError(f"target is {value!r}; expected ({first}, {second})") from None
    if not (0 < one < 1 and 0 < two < 1):
        raise ValueError(f"target is {value!r}; {first} and {second} lie above 0 and below 1")
    return one, two

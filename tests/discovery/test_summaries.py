"""The first line of a docstring, found in a source without parsing it, or not at all."""

from __future__ import annotations

import pytest

from hatbus.discovery.summaries import quick_summary


@pytest.mark.parametrize(
    ("kind", "source", "found"),
    [
        ("class", 'class Hat:\n    """Is worn."""\n', "Is worn."),
        (
            "class",
            'class Hat(Base, metaclass=Meta):\n\n    r"""Is worn.\n\n    More.\n',
            "Is worn.",
        ),
        ("class", 'class Hat(\n    Base,\n):\n    """Is worn."""\n', "Is worn."),
        ("def", 'def Hat(words) -> int | None:\n    """Is worn."""\n', "Is worn."),
        ("def", 'def Hat(\n    words: list[str],\n) -> int:\n    """Is worn."""\n', "Is worn."),
        ("class", 'class Hat:\n    size = 1\n\n\nclass Cap:\n    """Is another."""\n', None),
        ("class", 'class Hat:\n    def put(self):\n        """Is of a method."""\n', None),
        (
            "class",
            'class Hat(\n    Base,\n):\n    size = 1\n\nclass Cap:\n    """Is no hat."""\n',
            None,
        ),
        (
            "def",
            'def Hat(words):\n    return 1\n\n\ndef cap(words):\n    """Is another."""\n',
            None,
        ),
        ("class", 'class Hats:\n    """Are many."""\n', None),
    ],
)
def test_the_first_line_is_of_what_is_asked_for(kind: str, source: str, found: str | None) -> None:
    assert quick_summary(source, "Hat", kind) == found

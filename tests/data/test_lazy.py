"""Values are made when they are touched, and once."""

import pytest

from visuomotor.data.lazy import Lazy


def test_values_are_made_on_first_touch_and_once():
    made = []

    def make(name):
        made.append(name)
        return name.upper()

    lazy = Lazy(["a", "b"], make)
    assert ("a" in lazy, "c" in lazy, list(lazy), len(lazy)) == (True, False, ["a", "b"], 2)
    assert made == []
    assert (lazy["b"], lazy["b"], made) == ("B", "B", ["b"])
    assert dict(lazy) == {"a": "A", "b": "B"}
    with pytest.raises(KeyError, match="c"):
        lazy["c"]

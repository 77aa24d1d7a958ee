"""SBU's parallel lists, read a piece at a time: as the whole text read at once, and a sentence for anything else."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkdiff.storage import caption_json
from thinkdiff.storage.caption_json import JsonError, list_items

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.fixed_dictionaries({"urls": st.lists(VALUES, max_size=6)}, optional={"a": VALUES, "z": VALUES})
WRITTEN = st.fixed_dictionaries({"ensure_ascii": st.booleans(), "indent": st.sampled_from([None, 1])})


class Trickle(io.BytesIO):
    """A stream that gives a few bytes at a time."""

    def __init__(self, data: bytes, piece: int = 3) -> None:
        super().__init__(data)
        self.piece = piece

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(size or 1, self.piece))


def items(data: bytes, whole: bool = True, piece: int = 3) -> list[Any]:
    return list(list_items(Trickle(data, piece), "urls", whole))


@given(OBJECTS, st.permutations(["a", "urls", "z"]), WRITTEN, st.booleans())
def test_items_are_those_of_the_whole_text(found: dict, order: list[str], written: dict, whole: bool):
    text = json.dumps({key: found[key] for key in order if key in found}, **written)
    assert items(text.encode(), whole) == found["urls"]


@settings(max_examples=300)
@given(OBJECTS, st.integers(0, 200), st.binary(max_size=3), st.integers(0, 3))
def test_damaged_text_gives_its_items_or_says_so(found: dict, at: int, inserted: bytes, lost: int):
    data = json.dumps(found).encode()
    at = min(at, len(data))
    data = data[:at] + inserted + data[at + lost :]
    try:
        got = items(data)
    except JsonError:
        return
    assert repr(got) == repr(json.loads(data.decode("utf-8-sig", "surrogateescape"))["urls"])


@given(OBJECTS, st.data())
def test_text_that_is_cut_off_says_so(found: dict, data: st.DataObject):
    whole = json.dumps(found).encode()
    with pytest.raises(JsonError):
        items(whole[: data.draw(st.integers(0, len(whole) - 1))])


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[1]", '{"urls": 1}', '{"other": []}', '{"urls": [1 2]}', '{"urls": []} {}', '{"urls": [], 1: 2}',
     '{"a": ' + "[" * 100_000, '{"urls": [' + "9" * 5000 + "]}"],
)  # fmt: skip
def test_text_that_holds_no_such_list_says_so(text: str):
    piece = max(3, len(text) // 100)  # a value that does not end is read anew with every piece
    with pytest.raises(JsonError):
        items(text.encode(), piece=piece)


def test_one_bad_byte_spoils_one_item():
    assert items(b'{"urls": ["caf\xc3\xa9", "caf\xe9", "x"]}') == ["café", "caf\udce9", "x"]


def test_value_without_end_is_not_held(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(caption_json, "MAX_ITEM", 1000)
    stream = Trickle(b'{"urls": ["' + b"x" * 100_000)
    with pytest.raises(JsonError, match="does not end"):
        list(list_items(stream, "urls"))
    assert stream.tell() < 1100


def test_list_without_strings_is_looked_through_once_for_each_piece(monkeypatch: pytest.MonkeyPatch):
    looked = 0

    class Counted(str):
        def rfind(self, *places: Any) -> int:
            nonlocal looked
            looked += 1
            return super().rfind(*places)

    text = caption_json.JsonText(io.BytesIO(b"[" + b"1," * 5000 + b"1]"))
    monkeypatch.setattr(text, "_decode", lambda data, last: Counted(data.decode()))
    monkeypatch.setattr(text, "_text", Counted())
    assert sum(map(len, text.items())) == 5001
    assert looked <= 2

"""Protobuf's wire format, as far as it is needed around protobuf's own parser.

A message is looked over before it is parsed, and after its parser has refused it, to name the
text that is not UTF-8. Both go through the fields one by one, keep nothing of them, and stop
after `MAX_FIELDS`. The library does neither: upb bounds no fields (an empty message of two bytes
takes 64 once parsed, 90 in an `UnknownFieldSet`), and its `DecodeError` names the type alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

MAX_FIELDS = 250_000
"""Most fields of a message, those of messages in it included. The largest request that the
default limits allow has about 70,000."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


class TooManyFields(Exception):
    """A message has more than `MAX_FIELDS`."""


class Walk:
    """Goes through the fields of one message, once."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._left = MAX_FIELDS

    def count(self, descriptor: Any) -> None:
        """Go through all fields, those of messages in it included.

        Raises:
            TooManyFields: there are more than `MAX_FIELDS`.
        """
        try:
            self._count(descriptor, 0, len(self._data))
        except (IndexError, ValueError):
            return  # no message at all: its parser says so

    def find_bad_text(self, descriptor: Any) -> str:
        """Path of the first string field that is not UTF-8; empty if none is found."""
        try:
            return self._find_bad_text(descriptor, 0, len(self._data))
        except (IndexError, ValueError, TooManyFields):
            return ""

    def _count(self, descriptor: Any, at: int, end: int) -> None:
        known = descriptor.fields_by_number
        inner: dict[int, Any] = {}
        for number, start, stop in self._fields(at, end):
            if number not in inner:
                field = known.get(number)
                is_message = field is not None and field.type == FieldDescriptor.TYPE_MESSAGE
                inner[number] = field.message_type if is_message else None
            if inner[number] is not None and start < stop:
                self._count(inner[number], start, stop)

    def _find_bad_text(self, descriptor: Any, at: int, end: int) -> str:
        places: Counter[str] = Counter()
        for number, start, stop in self._fields(at, end):
            field = descriptor.fields_by_number.get(number)
            if field is None:
                continue
            name: str = field.name
            if field.is_repeated:
                places[name] += 1
                name = f"{name}[{places[name] - 1}]"
            if field.type == FieldDescriptor.TYPE_STRING and not self._is_utf8(start, stop):
                return name
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                found = self._find_bad_text(field.message_type, start, stop)
                if found:
                    return f"{name}.{found}"
        return ""

    def _is_utf8(self, start: int, stop: int) -> bool:
        try:
            self._data[start:stop].decode("utf-8")
        except UnicodeDecodeError:
            return False
        return True

    def _fields(self, at: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Number, start and stop of the length-delimited fields in a range of the bytes."""
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise TooManyFields
            tag, at = self._varint(at)
            kind = tag & 7
            if kind == _VARINT:
                _, at = self._varint(at)
            elif kind == _FIXED64:
                at += 8
            elif kind == _FIXED32:
                at += 4
            elif kind == _LENGTH:
                size, at = self._varint(at)
                if at + size > end:
                    raise ValueError("a field goes past the end")
                yield tag >> 3, at, at + size
                at += size
            else:
                raise ValueError("groups are not used")

    def _varint(self, at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = self._data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
            shift += 7
            if shift > 63:
                raise ValueError("a varint is too long")

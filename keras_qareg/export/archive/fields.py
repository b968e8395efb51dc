"""Small fields of bytes: whole numbers of any size, and a reader that never goes past the end."""

from __future__ import annotations

# What a whole number may come to; none of ours is near.
_MOST_BITS = 63


class FieldError(ValueError):
    """Bytes end before a field does, or a field does not make sense."""


def varint(number: int) -> bytes:
    """A whole number of 0 or more: seven bits a byte, the lowest first, all but the last with bit 7.

    Example:

    >>> varint(300)
    b'\\xac\\x02'
    """
    found = bytearray()
    while number >= 128:
        found.append(128 | number & 127)
        number >>= 7
    return bytes([*found, number])


class Cursor:
    """Reads fields one after the other.

    Args:
        content: The bytes.
    """

    def __init__(self, content: bytes):
        self._content, self._place = content, 0

    def take(self, size: int) -> bytes:
        """The next bytes."""
        found = self._content[self._place : self._place + size]
        if len(found) != size:
            raise FieldError(f"Expected {size} more bytes. Received: {len(found)}")
        self._place += size
        return found

    def byte(self) -> int:
        """The next byte."""
        return self.take(1)[0]

    def varint(self) -> int:
        """The next whole number."""
        number = shift = 0
        while True:
            byte = self.byte()
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number
            if shift >= _MOST_BITS:
                raise FieldError("Expected a whole number below 2^63. Received: a longer one")

    def rest(self) -> bytes:
        """All bytes that are left."""
        return self.take(len(self._content) - self._place)

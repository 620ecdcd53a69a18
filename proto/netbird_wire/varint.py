"""Protobuf's whole numbers, for messages that are put together as bytes."""


def varint(number: int) -> bytes:
    """Encode a non-negative whole number, seven bits a byte, lowest bits first."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)

"""STUN: the codec, and binding transactions with servers."""

from netbird_overlay.stun.client import Mapped, StunClient, Unanswered
from netbird_overlay.stun.encoding import BadStun, looks_like_stun
from netbird_overlay.stun.messages import Kind, Message, encode, parse

__all__ = ["BadStun", "Kind", "Mapped", "Message", "StunClient", "Unanswered", "encode", "looks_like_stun", "parse"]

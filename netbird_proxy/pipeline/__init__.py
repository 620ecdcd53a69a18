"""The path of one exchange: its stages in order, their failures, the heads, and the bytes both ways."""

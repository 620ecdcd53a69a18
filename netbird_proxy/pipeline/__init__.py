"""What happens to one exchange: stages in order, their failures, the heads, and the bytes both ways."""

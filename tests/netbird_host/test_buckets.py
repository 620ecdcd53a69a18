"""Allowances that refill with time."""

from __future__ import annotations

from math import inf

from netbird_host.buckets import Bucket, Buckets


def test_a_bucket_tells_when_an_amount_can_be_spent() -> None:
    """At once if it is left, later if it must refill first, and never without a rate."""
    bucket = Bucket(2, 4, now=0)
    assert bucket.delay(4, 0) == 0
    assert bucket.spend(4, 0)
    assert bucket.delay(1, 0) == 0.5
    assert bucket.delay(1, 0.5) == 0
    assert Bucket(0, 1, now=0).delay(2, 100) == inf


def test_each_key_has_a_bucket_of_its_own_and_the_oldest_is_forgotten() -> None:
    """A try that is refused costs nothing, and looking at a key keeps no bucket of it."""
    now = 0.0
    buckets = Buckets(lambda: now, burst=1, per_second=0.5, keys=2)
    assert buckets.take("a")
    assert not buckets.take("a")
    assert (buckets.delay("a"), buckets.is_empty("a"), buckets.is_empty("b")) == (2.0, True, False)
    assert len(buckets) == 1

    now = 2.0
    assert buckets.take("a")
    assert buckets.take("b")
    assert buckets.take("c")
    assert (len(buckets), buckets.is_empty("a"), buckets.is_empty("b")) == (2, False, True)

//! Judges whether the next datagrams may collect for a moment, as network cards let packets collect.
//!
//! A peer that acknowledges every second packet, or sends its datagrams one by one, wakes the process for each; the same
//! datagrams in one batch cost a fraction. So after a pump that was part of a bulk transfer the caller may wait a
//! millisecond: the transfer has enough data on the way to go on meanwhile. A pump that took many datagrams at once
//! needs no wait, and small exchanges never cause one.

use overlay_core::time::{Micros, MILLISECOND};

/// Bytes on the way to a peer from which its next acknowledgment is not urgent: above 100 MB/s in a millisecond.
const FLIGHT: usize = 128 << 10;
/// Bytes received within a millisecond that count as bulk.
const BURST: usize = 32 << 10;
/// Number of datagrams in one pump from which batches are large enough without a wait.
const LARGE_BATCH: usize = 64;

/// The bytes received since a moment at most a millisecond ago.
#[derive(Default)]
pub struct Pace {
    since: Micros,
    bytes: usize,
}

impl Pace {
    /// Note what a pump received. True if the next datagrams may collect.
    pub fn may_collect(&mut self, now: Micros, datagrams: usize, bytes: usize, in_flight: usize) -> bool {
        if now - self.since > MILLISECOND {
            *self = Pace { since: now, bytes: 0 };
        }
        self.bytes += bytes;
        (1..LARGE_BATCH).contains(&datagrams) && (in_flight >= FLIGHT || self.bytes >= BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_exchange_waits_for_nothing() {
        let mut pace = Pace::default();
        for turn in 0..1000 {
            assert!(!pace.may_collect(turn * 100, 1, 1280, 100 << 10));
        }
    }

    #[test]
    fn acknowledgments_of_a_transfer_collect() {
        assert!(Pace::default().may_collect(0, 1, 96, FLIGHT));
    }

    #[test]
    fn a_fast_sender_s_datagrams_collect() {
        let mut pace = Pace::default();
        let collecting: Vec<bool> = (0..30).map(|turn| pace.may_collect(turn, 1, 1312, 0)).collect();
        assert_eq!(collecting.iter().position(|collecting| *collecting), Some(24));
        assert!(!pace.may_collect(2 * MILLISECOND, 1, 1312, 0));
    }

    #[test]
    fn nothing_is_waited_for_without_datagrams_or_after_many() {
        let mut pace = Pace::default();
        assert!(!pace.may_collect(0, 0, 0, 1 << 20));
        assert!(!pace.may_collect(0, LARGE_BATCH, 80_000, 1 << 20));
    }
}

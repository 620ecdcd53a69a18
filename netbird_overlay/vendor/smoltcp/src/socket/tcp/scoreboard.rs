use crate::wire::TcpSeqNumber;

/// Number of ranges that are kept. The remote end may report more; what it got of those is sent once more.
const MAX_RANGES: usize = 32;

/// RFC 6675: what was sent is lost if this many ranges after it arrived, or more than this many segments less one.
const DUP_THRESH: usize = 3;

/// The data that the remote end received out of order (RFC 2018), so that only what it lacks is sent again (RFC 6675).
#[derive(Debug, Clone)]
pub(super) struct Scoreboard {
    // Ascending; no two overlap or touch.
    ranges: [(TcpSeqNumber, TcpSeqNumber); MAX_RANGES],
    count: usize,
    // Greatest distance by which something arrived after what was sent later, although it was sent only once.
    reordered: usize,
}

impl Scoreboard {
    pub fn new() -> Self {
        Scoreboard {
            ranges: [(TcpSeqNumber(0), TcpSeqNumber(0)); MAX_RANGES],
            count: 0,
            reordered: 0,
        }
    }

    /// Return the number of octets by which the network changes the order of segments, with `flight` octets sent.
    ///
    /// At most half of these: then a loss is noticed within about a round trip, since each octet that arrives lets
    /// another one out.
    pub fn reordered(&self, flight: usize) -> usize {
        self.reordered.min(flight / 2)
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn clear(&mut self) {
        self.count = 0;
        self.reordered = 0;
    }

    fn ranges(&self) -> &[(TcpSeqNumber, TcpSeqNumber)] {
        &self.ranges[..self.count]
    }

    /// Take note of the blocks of an ack of everything before `acked`. What is not before `once` was sent once only.
    ///
    /// Blocks that do not lie between `acked` and `next`, the end of what was ever sent, say nothing and are ignored.
    pub fn update(
        &mut self,
        acked: TcpSeqNumber,
        next: TcpSeqNumber,
        once: TcpSeqNumber,
        blocks: &[Option<(u32, u32)>],
    ) {
        let highest = self.ranges().last().map_or(once, |range| range.1);
        self.note_late(once, acked, highest);
        self.forget_before(acked);
        for &(left, right) in blocks.iter().flatten() {
            let (left, right) = (TcpSeqNumber(left as i32), TcpSeqNumber(right as i32));
            // Sequence numbers wrap around, so that both ends must be compared with both limits.
            if acked < left && left < next && acked < right && right <= next && left < right {
                self.note_late(left.max(once), right, highest);
                self.insert(left, right);
            }
        }
    }

    /// Note that everything between `from` and `to` arrived, which was sent once, and `highest` long ago.
    fn note_late(&mut self, from: TcpSeqNumber, to: TcpSeqNumber, highest: TcpSeqNumber) {
        if let Some((start, _)) = self.hole(from, to.min(highest)) {
            self.reordered = self.reordered.max(highest - start);
        }
    }

    fn forget_before(&mut self, acked: TcpSeqNumber) {
        let gone = self.ranges().iter().take_while(|range| range.1 <= acked);
        let gone = gone.count();
        self.ranges.copy_within(gone..self.count, 0);
        self.count -= gone;
        // The ack would cover this range if the remote end still had it.
        if self.ranges().first().is_some_and(|range| range.0 <= acked) {
            self.clear();
        }
    }

    fn insert(&mut self, mut left: TcpSeqNumber, mut right: TcpSeqNumber) {
        // The ranges from `first` to `last` overlap or touch the new one.
        let first = self.ranges().iter().take_while(|range| range.1 < left);
        let first = first.count();
        let last = self.ranges().iter().take_while(|range| range.0 <= right);
        let last = last.count();
        if first == last {
            if self.count == MAX_RANGES {
                return;
            }
            self.ranges.copy_within(first..self.count, first + 1);
            self.count += 1;
        } else {
            left = left.min(self.ranges[first].0);
            right = right.max(self.ranges[last - 1].1);
            self.ranges.copy_within(last..self.count, first + 1);
            self.count -= last - first - 1;
        }
        self.ranges[first] = (left, right);
    }

    /// Return the number of octets between `from` and `to` that arrived.
    pub fn received(&self, from: TcpSeqNumber, to: TcpSeqNumber) -> usize {
        let within = |&(left, right): &(TcpSeqNumber, TcpSeqNumber)| {
            let (left, right) = (left.max(from), right.min(to));
            if left < right { right - left } else { 0 }
        };
        self.ranges().iter().map(within).sum()
    }

    /// Return the first sequence number from `from` on that did not arrive.
    pub fn skip(&self, from: TcpSeqNumber) -> TcpSeqNumber {
        let range = self.ranges().iter().find(|range| from < range.1);
        range.map_or(from, |&(left, right)| if left <= from { right } else { from })
    }

    /// Return the first stretch between `from` and `to` that did not arrive.
    pub fn hole(&self, from: TcpSeqNumber, to: TcpSeqNumber) -> Option<(TcpSeqNumber, TcpSeqNumber)> {
        let start = self.skip(from);
        let next = self.ranges().iter().find(|range| start < range.0);
        let end = next.map_or(to, |range| range.0.min(to));
        (start < end).then_some((start, end))
    }

    /// Return the sequence number before which everything that did not arrive is lost, with `flight` octets sent.
    pub fn lost_before(&self, mss: usize, flight: usize) -> Option<TcpSeqNumber> {
        let least = self.reordered(flight).max((DUP_THRESH - 1) * mss);
        let mut octets = 0;
        for (after, &(left, right)) in self.ranges().iter().rev().enumerate() {
            octets += right - left;
            let many = after + 1 >= DUP_THRESH && self.reordered == 0;
            if many || octets > least {
                return Some(left);
            }
        }
        None
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::vec::Vec;

    fn seq(number: i64) -> TcpSeqNumber {
        TcpSeqNumber(number as i32)
    }

    fn block(left: i64, right: i64) -> Option<(u32, u32)> {
        Some((left as u32, right as u32))
    }

    fn ranges(scoreboard: &Scoreboard) -> Vec<(i32, i32)> {
        let ranges = scoreboard.ranges().iter();
        ranges.map(|range| (range.0.0, range.1.0)).collect()
    }

    #[test]
    fn ranges_are_joined_and_forgotten() {
        let mut scoreboard = Scoreboard::new();
        scoreboard.update(seq(0), seq(1000), seq(1000), &[block(300, 400), block(100, 200)]);
        assert_eq!(ranges(&scoreboard), [(100, 200), (300, 400)]);
        scoreboard.update(seq(0), seq(1000), seq(1000), &[block(400, 450), block(500, 600)]);
        assert_eq!(ranges(&scoreboard), [(100, 200), (300, 450), (500, 600)]);
        scoreboard.update(seq(0), seq(1000), seq(1000), &[block(150, 500)]);
        assert_eq!(ranges(&scoreboard), [(100, 600)]);
        scoreboard.update(seq(600), seq(1000), seq(1000), &[block(700, 800)]);
        assert_eq!(ranges(&scoreboard), [(700, 800)]);
    }

    #[test]
    fn blocks_that_cannot_be_true_are_ignored() {
        for base in [0, 1 << 31, (1 << 32) - 500] {
            let mut scoreboard = Scoreboard::new();
            for (left, right) in [
                (200, 100),
                (100, 100),
                (0, 100),
                (-100, 100),
                (-200, -100),
                (900, 1001),
                (1000, 1100),
                (1 << 31, (1 << 31) + 100),
                ((1 << 31) - 1, (1 << 32) - 2),
                (100, (1 << 31) + 50),
            ] {
                let blocks = [block(base + left, base + right)];
                scoreboard.update(seq(base), seq(base + 1000), seq(base + 1000), &blocks);
                assert!(scoreboard.is_empty(), "{left} to {right} from {base}");
            }
        }
    }

    #[test]
    fn ranges_are_bounded() {
        let mut scoreboard = Scoreboard::new();
        for left in (10..10_000).rev().step_by(10) {
            scoreboard.update(seq(0), seq(20_000), seq(20_000), &[block(left, left + 5)]);
            assert!(scoreboard.ranges().is_sorted_by(|a, b| a.1 < b.0));
        }
        assert_eq!(scoreboard.ranges().len(), MAX_RANGES);
        // Those that are kept are used nevertheless, and closed holes make room.
        scoreboard.update(seq(0), seq(20_000), seq(20_000), &[block(9_000, 20_000), block(10, 15)]);
        assert_eq!(ranges(&scoreboard), [(10, 15), (9_000, 20_000)]);
    }

    #[test]
    fn a_remote_end_that_takes_back_a_range_is_not_believed_any_longer() {
        let mut scoreboard = Scoreboard::new();
        scoreboard.update(seq(0), seq(1000), seq(1000), &[block(100, 200), block(300, 400)]);
        scoreboard.update(seq(150), seq(1000), seq(1000), &[]);
        assert!(scoreboard.is_empty());
    }

    #[test]
    fn holes_and_losses_are_counted_from_what_arrived() {
        let mut scoreboard = Scoreboard::new();
        assert_eq!(scoreboard.lost_before(100, 8000), None);
        scoreboard.update(seq(0), seq(1000), seq(1000), &[block(100, 200), block(300, 400)]);
        assert_eq!(scoreboard.lost_before(100, 8000), None);
        scoreboard.update(seq(0), seq(1000), seq(1000), &[block(400, 401)]);
        assert_eq!(scoreboard.lost_before(100, 8000), Some(seq(100)));
        scoreboard.update(seq(0), seq(1000), seq(1000), &[block(500, 501)]);
        assert_eq!(scoreboard.lost_before(1000, 8000), Some(seq(100)));

        assert_eq!(scoreboard.received(seq(0), seq(1000)), 202);
        assert_eq!(scoreboard.received(seq(150), seq(350)), 100);
        assert_eq!(scoreboard.hole(seq(0), seq(1000)), Some((seq(0), seq(100))));
        assert_eq!(scoreboard.hole(seq(100), seq(250)), Some((seq(200), seq(250))));
        assert_eq!(scoreboard.hole(seq(350), seq(401)), None);
        assert_eq!(scoreboard.hole(seq(600), seq(1000)), Some((seq(600), seq(1000))));
        assert_eq!(scoreboard.skip(seq(350)), seq(401));
        assert_eq!(scoreboard.skip(seq(250)), seq(250));
    }

    #[test]
    fn reordering_is_no_loss() {
        let mut scoreboard = Scoreboard::new();
        scoreboard.update(seq(0), seq(9000), seq(0), &[block(100, 1000)]);
        assert_eq!(scoreboard.lost_before(100, 8000), Some(seq(100)));
        // What was sent twice may have arrived the second time.
        scoreboard.update(seq(100), seq(9000), seq(100), &[]);
        assert_eq!(scoreboard.reordered(8000), 0);
        scoreboard.update(seq(1000), seq(9000), seq(1000), &[block(1100, 2000)]);
        scoreboard.update(seq(1000), seq(9000), seq(1000), &[block(1050, 2000)]);
        assert_eq!(scoreboard.reordered(8000), 950);
        scoreboard.update(seq(2000), seq(9000), seq(1000), &[]);
        assert_eq!(scoreboard.reordered(8000), 1000);
        scoreboard.update(seq(2000), seq(9000), seq(2000), &[block(2100, 3100)]);
        assert_eq!(scoreboard.lost_before(100, 8000), None);
        assert_eq!(scoreboard.lost_before(100, 1900), Some(seq(2100)));
        scoreboard.update(seq(2000), seq(9000), seq(2000), &[block(2100, 3101)]);
        assert_eq!(scoreboard.lost_before(100, 8000), Some(seq(2100)));
        scoreboard.clear();
        assert_eq!(scoreboard.reordered(8000), 0);
    }
}

//! The time that callers pass in, and the date, which is asked for once. The only place that sets boringtun's clock.

use std::time::{Duration, SystemTime};

use mock_instant::MockClock;
use smoltcp::time::Instant;

/// Microseconds since the engine's first `now`. Work requested before the first `now` happens at time 0, not in the
/// distant past.
pub type Micros = u64;

pub const NEVER: Micros = u64::MAX;
pub const SECOND: Micros = 1_000_000;
pub const MILLISECOND: Micros = 1_000;

/// More seconds than any engine lives (about 30,000 years), so that sums of times never overflow.
const LATEST: f64 = 1e12;

/// Nanoseconds between the dates of handshakes, as in the kernel's implementation: peers do not learn our exact clock,
/// by which they could recognise this machine elsewhere or measure what it does.
const STAMP_GRID: u32 = 1 << 24;

/// A clock that its owner advances. It never goes backwards.
pub struct Clock {
    now: Micros,
    /// The caller's first `now`.
    beginning: Option<f64>,
    /// The date at time 0.
    date: Duration,
    /// The last result of `stamp`.
    stamp: Duration,
}

impl Clock {
    /// `date` is the time since 1970 at the first `now`; None asks the system.
    pub fn new(date: Option<f64>) -> Self {
        let date = match date {
            Some(seconds) => Duration::from_secs_f64(seconds.clamp(0.0, LATEST)),
            None => SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(),
        };
        Clock { now: 0, beginning: None, date, stamp: Duration::ZERO }
    }

    /// Advance to the caller's time. An older time, or NaN, changes nothing.
    ///
    /// Rounded, not truncated, so that a deadline counts as reached when the caller passes it back as `now`.
    pub fn set(&mut self, seconds: f64) {
        if seconds.is_finite() {
            let life = seconds - *self.beginning.get_or_insert(seconds);
            self.now = self.now.max((life.clamp(0.0, LATEST) * 1e6).round() as Micros);
        }
        self.enter();
    }

    /// Set the thread's mock clock to this engine's time. Every call into boringtun must follow such a call.
    pub fn enter(&self) {
        MockClock::set_time(Duration::from_micros(self.now));
    }

    /// Time since 1970, by the clock that the machine had at our start.
    pub fn date(&self) -> Duration {
        self.date + Duration::from_micros(self.now)
    }

    /// Return the date for a handshake: coarse, and later than any before it, since a peer takes two handshakes with one
    /// date for a replay. It is ahead of the grid by a nanosecond for each other one in the same cell of the grid.
    pub fn stamp(&mut self) -> Duration {
        let date = self.date();
        let coarse = Duration::new(date.as_secs(), date.subsec_nanos() / STAMP_GRID * STAMP_GRID);
        self.stamp = coarse.max(self.stamp + Duration::from_nanos(1));
        self.stamp
    }

    pub fn now(&self) -> Micros {
        self.now
    }

    /// Convert an engine time to the caller's clock; minus infinity before the first `now`.
    pub fn on_callers_clock(&self, at: Micros) -> f64 {
        match (at, self.beginning) {
            (NEVER, _) => f64::INFINITY,
            (_, None) => f64::NEG_INFINITY,
            (_, Some(beginning)) => beginning + seconds(at),
        }
    }
}

pub fn seconds(duration: Micros) -> f64 {
    duration as f64 / 1e6
}

pub fn instant(at: Micros) -> Instant {
    Instant::from_micros(at as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_handshakes_are_coarse_and_no_two_are_the_same() {
        let mut clock = Clock::new(Some(1.8e9));
        let mut last = Duration::ZERO;
        let mut cells = std::collections::HashSet::new();
        for step in 0..3000 {
            clock.set(f64::from(step / 3) * 1e-3);
            let stamp = clock.stamp();
            assert!(stamp > last);
            assert!(stamp <= clock.date() + Duration::from_nanos(3));
            // The rest says how many handshakes began in the same cell, and nothing of the time.
            assert!(stamp.subsec_nanos() % STAMP_GRID < 60);
            cells.insert(stamp.subsec_nanos() / STAMP_GRID);
            last = stamp;
        }
        assert_eq!(cells.len(), 60);
    }
}

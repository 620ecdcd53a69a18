//! The time that callers pass in, and the only place that sets boringtun's clock.

use std::time::Duration;

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

/// A clock that its owner advances. It never goes backwards.
pub struct Clock {
    now: Micros,
    /// The caller's first `now`.
    beginning: Option<f64>,
    calls: u64,
}

impl Clock {
    pub fn new() -> Self {
        Clock { now: 0, beginning: None, calls: 0 }
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
    ///
    /// Each call adds a nanosecond: the peer would take two handshakes with the same timestamp for a replay.
    pub fn enter(&mut self) {
        self.calls += 1;
        MockClock::set_time(Duration::from_micros(self.now) + Duration::from_nanos(self.calls));
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

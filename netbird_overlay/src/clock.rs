//! The time that callers bring along, and the one place where boringtun is told of it.

use std::time::Duration;

use mock_instant::MockClock;
use smoltcp::time::Instant;

/// Microseconds of the engine's life, which begins when it first hears the time: what is asked of it before that
/// happens at its beginning, not ages ago.
pub type Micros = u64;

pub const NEVER: Micros = u64::MAX;
pub const SECOND: Micros = 1_000_000;
pub const MILLISECOND: Micros = 1_000;

/// Seconds that no life reaches (about 30,000 years), so that sums of times never overflow.
const LATEST: f64 = 1e12;

/// A clock that only its owner moves, and never backwards.
pub struct Clock {
    now: Micros,
    /// What the caller's clock showed when it was heard first.
    beginning: Option<f64>,
    calls: u64,
}

impl Clock {
    pub fn new() -> Self {
        Clock { now: 0, beginning: None, calls: 0 }
    }

    /// Take over the caller's idea of the time. An older one, or one that is no number, changes nothing.
    ///
    /// Rounded, not cut, so that a deadline that was handed out is reached when it is handed back.
    pub fn set(&mut self, seconds: f64) {
        if seconds.is_finite() {
            let life = seconds - *self.beginning.get_or_insert(seconds);
            self.now = self.now.max((life.clamp(0.0, LATEST) * 1e6).round() as Micros);
        }
        self.enter();
    }

    /// Make this engine's time the thread's; each call into boringtun's code has to come after one of these.
    ///
    /// A nanosecond is added each time: two handshakes with the same timestamp would look like a replay.
    pub fn enter(&mut self) {
        self.calls += 1;
        MockClock::set_time(Duration::from_micros(self.now) + Duration::from_nanos(self.calls));
    }

    pub fn now(&self) -> Micros {
        self.now
    }

    /// A time of the engine's life on the caller's clock; long ago if nobody knows yet what that shows.
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

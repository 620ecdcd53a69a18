//! A peer's timers: boringtun's, our own retries and keepalives, and the one entry in the heap that stands for them.

use std::cmp::Reverse;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::TunnResult;

use super::{Peer, CONTROL, GRID, TICK_HANDSHAKE, TICK_SESSION};
use crate::shared::Shared;
use crate::time::{Micros, NEVER, SECOND};

impl Peer {
    /// boringtun's time advances only in its timer check, so check before any operation that records the time.
    pub(super) fn catch_up(&mut self, shared: &mut Shared) {
        if shared.now() - self.ticked > SECOND {
            self.check(shared);
        }
    }

    pub(super) fn check(&mut self, shared: &mut Shared) {
        self.ticked = shared.now();
        let mut buffer = [0u8; CONTROL];
        let result = self.with_index(shared, |tunn| match tunn.update_timers(&mut buffer) {
            TunnResult::WriteToNetwork(datagram) => Ok(datagram.len()),
            TunnResult::Err(error) => Err(error),
            _ => Ok(0),
        });
        match (result, self.endpoint) {
            (Err(WireGuardError::ConnectionExpired), _) => {
                self.handshaking = false;
                self.greeted = None;
                self.queued = false;
            }
            (Ok(1..), None) => shared.counters.no_endpoint += 1,
            (Ok(length @ 1..), Some(endpoint)) => {
                self.push(shared, &buffer[..length], endpoint);
            }
            _ => {}
        }
    }

    fn deadline(&self, now: Micros) -> Micros {
        let kept_alive = self.keepalive.is_some() && self.endpoint.is_some();
        let tick = if kept_alive && self.last_sent.is_none() {
            now
        } else if self.handshaking {
            self.ticked + TICK_HANDSHAKE
        } else if now < self.remains || kept_alive {
            self.ticked + TICK_SESSION
        } else {
            NEVER
        };
        tick.min(self.retry_at).checked_next_multiple_of(GRID).unwrap_or(NEVER)
    }

    /// Schedule the next tick, where it is earlier than the one that is scheduled.
    pub fn note(&mut self, shared: &mut Shared) {
        let deadline = self.deadline(shared.now());
        if deadline < self.tick_at {
            self.tick_at = deadline;
            shared.timers.push(Reverse((deadline, self.id)));
        }
    }

    /// Do the work that is due. The caller has removed the entry in `Shared::timers`.
    pub fn tick(&mut self, shared: &mut Shared) {
        self.tick_at = NEVER;
        self.check(shared);
        let now = shared.now();
        if self.retry_at <= now {
            self.handshake(shared);
        }
        // Our own keepalive and not boringtun's, which cannot be changed without ending the session.
        let interval = self.keepalive.map(|seconds| Micros::from(seconds) * SECOND);
        let due = interval.is_some_and(|interval| self.last_sent.is_none_or(|sent| now - sent >= interval));
        if due && self.endpoint.is_some() {
            self.send(shared, &[]);
            self.last_sent = Some(now);
        }
        self.note(shared);
    }
}

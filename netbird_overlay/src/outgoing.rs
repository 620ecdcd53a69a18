//! The queue of datagrams to send, back to back in one buffer.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::Range;

/// Size at which TCP stops filling the queue, until the socket has taken datagrams.
const ROOM: usize = 512;
/// Size at which even handshakes are dropped.
const FULL: usize = 1024;
/// Maximum free space before the waiting datagrams, beyond which they are moved to the start.
const SLACK: usize = 1 << 20;

pub struct Waiting {
    pub range: Range<usize>,
    pub to: SocketAddr,
}

pub struct Run<'a> {
    pub bytes: &'a [u8],
    pub to: SocketAddr,
    pub each: usize,
    pub count: usize,
}

#[derive(Default)]
pub struct Outgoing {
    bytes: Vec<u8>,
    waiting: VecDeque<Waiting>,
}

impl Outgoing {
    pub fn has_room(&self) -> bool {
        self.waiting.len() < ROOM
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Let `write` build a datagram of at most `size` bytes in place. It returns the length, or None to discard it.
    ///
    /// False if the queue is full; then `write` was not called.
    pub fn push(&mut self, to: SocketAddr, size: usize, write: impl FnOnce(&mut [u8]) -> Option<usize>) -> bool {
        if self.waiting.len() >= FULL {
            return false;
        }
        let start = self.bytes.len();
        self.bytes.resize(start + size, 0);
        let length = write(&mut self.bytes[start..]).unwrap_or(0).min(size);
        self.bytes.truncate(start + length);
        if length > 0 {
            self.waiting.push_back(Waiting { range: start..start + length, to });
        }
        true
    }

    pub fn get(&self, index: usize) -> Option<(&[u8], SocketAddr)> {
        let waiting = self.waiting.get(index)?;
        Some((&self.bytes[waiting.range.clone()], waiting.to))
    }

    /// The datagrams from `index` on that one message can carry: one destination, one size, the last may be shorter.
    pub fn run(&self, index: usize, most: usize, most_bytes: usize) -> Option<Run<'_>> {
        let first = self.waiting.get(index)?;
        let each = first.range.len();
        let (mut end, mut count) = (first.range.end, 1);
        for next in self.waiting.iter().skip(index + 1).take(most.saturating_sub(1)) {
            let fits = next.range.end - first.range.start <= most_bytes;
            if next.to != first.to || next.range.start != end || next.range.len() > each || !fits {
                break;
            }
            end = next.range.end;
            count += 1;
            if next.range.len() < each {
                break;
            }
        }
        Some(Run { bytes: &self.bytes[first.range.start..end], to: first.to, each, count })
    }

    /// Remove the first `count` datagrams, which were sent or cannot be sent.
    pub fn sent(&mut self, count: usize) {
        self.waiting.drain(..count.min(self.waiting.len()));
        match self.waiting.front() {
            None => self.bytes.clear(),
            Some(first) if first.range.start > SLACK => {
                let gap = first.range.start;
                self.bytes.drain(..gap);
                for waiting in &mut self.waiting {
                    waiting.range = waiting.range.start - gap..waiting.range.end - gap;
                }
            }
            Some(_) => {}
        }
    }
}

//! Datagrams that wait to be sent, back to back in one buffer.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::Range;

/// Where TCP stops filling the queue; it goes on when the socket has taken some.
const ROOM: usize = 512;
/// Where even handshakes are dropped.
const FULL: usize = 1024;
/// How much sent space may stand in front of waiting datagrams before they are moved together.
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

    /// Let `write` make a datagram of at most `size` bytes in place; it returns the length, or None to take it back.
    ///
    /// False if the queue is full and nothing was asked.
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

    /// The datagrams from `index` on that can go as one message: to one place, all of one size but for a shorter last.
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

    /// Forget the first `count` datagrams: they are sent, or cannot be.
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

//! The datagrams to send: those for the UDP socket back to back in one buffer, those for carriers one by one.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use crate::path::{Carrier, Path};

/// Size at which TCP stops filling the queue, until the socket has taken datagrams.
const ROOM: usize = 512;
/// Size at which even handshakes are dropped.
const FULL: usize = 1024;
/// Maximum free space before the waiting datagrams, beyond which they are moved to the start.
const SLACK: usize = 1 << 20;

pub struct Waiting {
    pub range: Range<usize>,
    pub to: SocketAddr,
    /// Our own address to send from, if it matters.
    pub from: Option<IpAddr>,
}

pub struct Run<'a> {
    pub bytes: &'a [u8],
    pub to: SocketAddr,
    pub from: Option<IpAddr>,
    pub each: usize,
    pub count: usize,
}

#[derive(Default)]
pub struct Outgoing {
    /// Its length is the largest one so far, so that no byte is cleared for each datagram.
    bytes: Vec<u8>,
    /// The end of the last waiting datagram.
    end: usize,
    waiting: VecDeque<Waiting>,
    carried: Vec<(Carrier, Vec<u8>)>,
}

impl Outgoing {
    pub fn has_room(&self) -> bool {
        self.waiting.len() < ROOM && self.carried.len() < ROOM
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// True if a datagram along this path would be dropped.
    pub fn is_full(&self, to: Path) -> bool {
        match to {
            Path::Udp { .. } => self.waiting.len() >= FULL,
            Path::Carrier(_) => self.carried.len() >= FULL,
        }
    }

    /// Let `write` build a datagram of at most `size` bytes in place. It returns the length, or None to discard it.
    ///
    /// False if the queue is full; then `write` was not called.
    pub fn push(&mut self, to: Path, size: usize, write: impl FnOnce(&mut [u8]) -> Option<usize>) -> bool {
        let (to, from) = match to {
            Path::Udp { remote, local } => (remote, local),
            Path::Carrier(carrier) => return self.push_carried(carrier, size, write),
        };
        if self.waiting.len() >= FULL {
            return false;
        }
        let length = write(self.place(size)).unwrap_or(0).min(size);
        self.commit(to, from, length);
        true
    }

    /// The place of the next datagram for the UDP socket, of `size` bytes with any content. `commit` adds it to the queue.
    pub fn place(&mut self, size: usize) -> &mut [u8] {
        let end = self.end + size;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        &mut self.bytes[self.end..end]
    }

    /// Add the first `length` bytes of the place as a datagram; nothing if that is 0.
    pub fn commit(&mut self, to: SocketAddr, from: Option<IpAddr>, length: usize) {
        let start = self.end;
        if length > 0 {
            self.end += length;
            self.waiting.push_back(Waiting { range: start..self.end, to, from });
        }
    }

    fn push_carried(&mut self, carrier: Carrier, size: usize, write: impl FnOnce(&mut [u8]) -> Option<usize>) -> bool {
        if self.carried.len() >= FULL {
            return false;
        }
        let mut datagram = vec![0; size];
        let length = write(&mut datagram).unwrap_or(0).min(size);
        if length > 0 {
            datagram.truncate(length);
            self.carried.push((carrier, datagram));
        }
        true
    }

    pub fn take_carried(&mut self) -> Vec<(Carrier, Vec<u8>)> {
        std::mem::take(&mut self.carried)
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
            if next.to != first.to
                || next.from != first.from
                || next.range.start != end
                || next.range.len() > each
                || !fits
            {
                break;
            }
            end = next.range.end;
            count += 1;
            if next.range.len() < each {
                break;
            }
        }
        Some(Run { bytes: &self.bytes[first.range.start..end], to: first.to, from: first.from, each, count })
    }

    /// Remove the first `count` datagrams, which were sent or cannot be sent.
    pub fn sent(&mut self, count: usize) {
        self.waiting.drain(..count.min(self.waiting.len()));
        match self.waiting.front() {
            None => self.end = 0,
            Some(first) if first.range.start > SLACK => {
                let gap = first.range.start;
                self.bytes.copy_within(gap..self.end, 0);
                self.end -= gap;
                for waiting in &mut self.waiting {
                    waiting.range = waiting.range.start - gap..waiting.range.end - gap;
                }
            }
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(queue: &mut Outgoing, to: SocketAddr, byte: u8, length: usize) {
        assert!(queue.push(Path::udp(to), length + 100, |buffer| {
            buffer[..length].fill(byte);
            Some(length)
        }));
    }

    #[test]
    fn datagrams_stay_themselves_while_others_come_and_go() {
        let to: SocketAddr = "192.0.2.1:1".parse().unwrap();
        let mut queue = Outgoing::default();
        let (mut pushed, mut sent) = (0u32, 0u32);
        for turn in 0..400u32 {
            for _ in 0..=(turn % 7) {
                push(&mut queue, to, pushed as u8, 1000 + (pushed % 3) as usize * 7000);
                pushed += 1;
            }
            for index in 0..queue.len() {
                let (bytes, _) = queue.get(index).unwrap();
                let number = sent + index as u32;
                assert_eq!(bytes.len(), 1000 + (number % 3) as usize * 7000);
                assert!(bytes.iter().all(|byte| *byte == number as u8));
            }
            // Mostly a few less than were pushed, so that the queue grows and moves, and all of them now and then.
            let count = if turn % 100 == 99 { queue.len() } else { queue.len().min(3) };
            queue.sent(count);
            sent += count as u32;
        }
        assert!(queue.is_empty() && queue.end == 0);
        assert!(queue.bytes.len() < 16 << 20);
    }

    #[test]
    fn a_place_that_is_not_committed_leaves_nothing() {
        let to: SocketAddr = "192.0.2.1:1".parse().unwrap();
        let mut queue = Outgoing::default();
        push(&mut queue, to, 1, 10);
        queue.place(5000).fill(9);
        assert!(queue.push(Path::udp(to), 50, |_| None));
        push(&mut queue, to, 2, 10);
        let run = queue.run(0, 64, 65_000).unwrap();
        assert_eq!((run.count, run.each, run.bytes.len()), (2, 10, 20));
        assert_eq!(run.bytes[10..], [2; 10]);
    }
}

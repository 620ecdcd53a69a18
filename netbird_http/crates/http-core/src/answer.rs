//! An upstream's answer: the ends of head and body, and what its framing permits (RFC 9112).
//!
//! The verdict depends on the bytes only, not on where they were cut. What old servers write askew is read, and their
//! connection is not used again: a blank before a colon, blanks behind a chunk's size, heads whose lines all end in a bare
//! LF, equal lengths. Anything that could be read in two ways is refused.

mod framing;
#[cfg(test)]
mod tests;

use std::ops::Range;

use framing::{is_printable, Framing};

use crate::chunks::{Broken, Chunked, Step};
use crate::fields::{Fields, Kind, Span};
pub use crate::section::Limits;
use crate::section::Section;

/// The reason why bytes are no answer: a sentence for the operator.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Violation(pub String);

impl Violation {
    fn invalid(what: &str) -> Violation {
        Violation(format!("invalid answer: {what}"))
    }
}

/// The facts of a request that decide the framing of its answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    /// The method is HEAD: the answer has no body.
    pub head_only: bool,
    /// An upgrade is asked for, so a 101 may come.
    pub upgrade: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Head,
    Octets(u64),
    UntilClose,
    Chunked,
    Over,
    Failed,
}

/// The start line, once it was read.
#[derive(Clone, Debug)]
struct Start {
    modern: bool,
    status: u16,
    reason: Range<usize>,
    /// Its line ends in a bare LF, so all others must.
    bare: bool,
}

/// The start of every answer; the mark stands for the minor version.
const PREFIX: &[u8] = b"HTTP/1.? ";

/// An answer, read as its bytes arrive.
#[derive(Debug)]
pub struct Answer {
    limits: Limits,
    asked: Asked,
    state: State,
    section: Section,
    start: Option<Start>,
    chunked: Chunked,
    /// Bytes of informational heads.
    quiet: usize,
    failure: Option<Violation>,
    /// Something was written askew, so no other request follows on this connection.
    mended: bool,
    /// 0 until the final head is complete.
    pub status: u16,
    /// Empty if it could be taken for something else.
    pub reason: Vec<u8>,
    pub headers: Fields,
    pub trailers: Fields,
    /// Informational heads, oldest first; the owner removes them.
    pub interim: Vec<(u16, Fields)>,
    pub head_complete: bool,
    pub complete: bool,
    /// The answer is a requested 101: its body is the raw stream behind it.
    pub switched: bool,
    pub keep_alive: bool,
    /// Bytes arrived behind the end.
    pub excess: bool,
    /// Bytes that were fed, heads included.
    pub fed: u64,
    /// Seconds for which the upstream keeps an idle connection, if it states them.
    pub kept_for: Option<u32>,
}

impl Answer {
    pub fn new(asked: Asked, limits: Limits) -> Answer {
        let limits = limits.bounded();
        Answer {
            limits,
            asked,
            state: State::Head,
            section: Section::default(),
            start: None,
            chunked: Chunked::lenient(limits),
            quiet: 0,
            failure: None,
            mended: false,
            status: 0,
            reason: Vec::new(),
            headers: Fields::default(),
            trailers: Fields::default(),
            interim: Vec::new(),
            head_complete: false,
            complete: false,
            switched: false,
            keep_alive: false,
            excess: false,
            fed: 0,
            kept_for: None,
        }
    }

    /// Take the next bytes. Positions in `data` that belong to the body are appended to `body`, also before a violation.
    /// After a violation every call returns it.
    pub fn feed(&mut self, data: &[u8], body: &mut Vec<Range<usize>>) -> Result<(), Violation> {
        self.fed = self.fed.saturating_add(data.len() as u64);
        let mut at = 0;
        while let Some(rest) = data.get(at..).filter(|rest| !rest.is_empty()) {
            let took = match self.state {
                State::Head => self.head(rest),
                State::Octets(left) => Ok(self.octets(left, at, rest.len(), body)),
                State::UntilClose => {
                    body.push(at..data.len());
                    return Ok(());
                }
                State::Chunked => self.chunk(at, rest, body),
                State::Over => {
                    self.excess = true;
                    return Ok(());
                }
                State::Failed => {
                    Err(self.failure.clone().unwrap_or_else(|| Violation::invalid("an earlier violation")))
                }
            };
            match took {
                Ok(bytes) => at += bytes,
                Err(violation) => {
                    self.state = State::Failed;
                    self.failure = Some(violation.clone());
                    return Err(violation);
                }
            }
        }
        Ok(())
    }

    /// The upstream has ended its side. Returns whether the answer is complete.
    pub fn feed_eof(&mut self) -> bool {
        if matches!(self.state, State::UntilClose) {
            self.end();
        }
        self.complete
    }

    fn end(&mut self) {
        self.complete = true;
        self.state = State::Over;
    }

    fn head(&mut self, rest: &[u8]) -> Result<usize, Violation> {
        // At most one byte above the limit is looked at, so that the limit comes first wherever the bytes are cut.
        let room = self.limits.bytes.saturating_sub(self.quiet + self.section.size());
        let (took, complete) = self.section.take(rest.get(..=room).unwrap_or(rest));
        if self.start.is_none() {
            self.check_prefix(complete)?;
        }
        if self.quiet + self.section.size() > self.limits.bytes {
            return Err(Violation(format!("head over {} bytes", self.limits.bytes)));
        }
        if !complete {
            return Ok(took);
        }
        let (line, bare) = self.section.end_line();
        let Some(start) = &self.start else {
            self.start = Some(self.read_start(line.start as usize, line.end as usize, bare)?);
            return Ok(took);
        };
        if start.bare != bare {
            // In a head of one kind, the other kind of end is somebody's attempt to write a line of their own.
            return Err(Violation::invalid("lines that end in different ways"));
        }
        if line.start == line.end {
            self.end_head()?;
            return Ok(took);
        }
        self.add_field(line)?;
        Ok(took)
    }

    fn add_field(&mut self, line: Span) -> Result<(), Violation> {
        self.mended |= self.section.add(line).map_err(Violation::invalid)?;
        if self.section.fields.lines.len() > self.limits.lines {
            return Err(Violation(format!("more than {} header lines", self.limits.lines)));
        }
        Ok(())
    }

    /// Refuse other protocols at their first byte that is not ours: they may never send a line.
    fn check_prefix(&self, complete: bool) -> Result<(), Violation> {
        let line = self.section.current();
        let differs = line.iter().zip(PREFIX).position(|(byte, expected)| match expected {
            b'?' => !matches!(byte, b'0' | b'1'),
            expected => byte != expected,
        });
        let shown = match differs {
            Some(at) => at + 1,
            None if complete && line.len() < PREFIX.len() => line.len(),
            None => return Ok(()),
        };
        let start = line.get(..shown).unwrap_or(line);
        Err(Violation(format!("not an HTTP/1.1 answer: it starts with b'{}'", start.escape_ascii())))
    }

    fn read_start(&self, start: usize, end: usize, bare: bool) -> Result<Start, Violation> {
        let bytes = &self.section.fields.bytes;
        let line = bytes.get(start..end).unwrap_or_default();
        let [b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor, b' ', hundreds, tens, ones, rest @ ..] = line else {
            return Err(Violation::invalid("the start line"));
        };
        let mut status = 0;
        for digit in [hundreds, tens, ones] {
            if !digit.is_ascii_digit() {
                return Err(Violation::invalid("the status"));
            }
            status = status * 10 + u16::from(digit - b'0');
        }
        if !matches!(rest.first(), None | Some(b' ')) {
            return Err(Violation::invalid("the status"));
        }
        if rest.contains(&b'\r') {
            return Err(Violation::invalid("a CR in the start line"));
        }
        if status < 100 {
            return Err(Violation(format!("status {status:03}")));
        }
        let reason = (end - rest.len().saturating_sub(1)).min(end)..end;
        Ok(Start { modern: *minor == b'1', status, reason, bare })
    }

    /// The head is complete: judge its framing.
    fn end_head(&mut self) -> Result<(), Violation> {
        let size = self.section.size();
        let section = std::mem::take(&mut self.section);
        let Some(start) = self.start.take() else { return Err(Violation::invalid("the start line")) };
        let mut fields = section.fields;
        let framing = Framing::of(&mut fields)?;
        let status = start.status;
        let reason = fields.bytes.get(start.reason).filter(|reason| is_printable(reason)).unwrap_or_default().to_vec();
        if status < 200 {
            if framing.length.is_some() || framing.chunked {
                return Err(Violation(format!("a body announced by status {status}")));
            }
            if status == 101 {
                self.reason = reason;
                return self.switch(&framing, fields);
            }
            self.quiet += size;
            self.interim.push((status, fields));
            return Ok(());
        }
        self.reason = reason;
        self.status = status;
        self.head_complete = true;
        self.mended |= start.bare || framing.mended;
        let kept = !framing.close && (start.modern || (framing.keep && !framing.chunked));
        self.keep_alive = kept && !self.mended;
        self.kept_for = framing.kept_for;
        if status == 204 || status == 304 || self.asked.head_only {
            if status == 204 {
                // A 204 must not have this field: a client that frames by it would wait for a body.
                fields.lines.retain(|line| line.kind != Kind::ContentLength);
            }
            self.end();
        } else if let Some(length) = framing.length {
            if length == 0 {
                self.end();
            } else {
                self.state = State::Octets(length);
            }
        } else if framing.chunked {
            self.state = State::Chunked;
        } else {
            self.keep_alive = false;
            self.state = State::UntilClose;
        }
        self.headers = fields;
        Ok(())
    }

    fn switch(&mut self, framing: &Framing, fields: Fields) -> Result<(), Violation> {
        if !self.asked.upgrade {
            return Err(Violation("101 to a request without an upgrade".into()));
        }
        if !(framing.upgrade && framing.upgrade_listed) {
            return Err(Violation("101 without Upgrade and Connection: upgrade".into()));
        }
        self.status = 101;
        self.headers = fields;
        self.head_complete = true;
        self.switched = true;
        self.state = State::UntilClose;
        Ok(())
    }

    fn octets(&mut self, left: u64, at: usize, available: usize, body: &mut Vec<Range<usize>>) -> usize {
        let took = available.min(usize::try_from(left).unwrap_or(usize::MAX));
        body.push(at..at + took);
        match left - took as u64 {
            0 => self.end(),
            left => self.state = State::Octets(left),
        }
        took
    }

    fn chunk(&mut self, at: usize, rest: &[u8], body: &mut Vec<Range<usize>>) -> Result<usize, Violation> {
        let step = self.chunked.take(rest).map_err(|broken| self.violation(broken))?;
        self.mended |= self.chunked.mended;
        self.keep_alive &= !self.mended;
        match step {
            Step::Framing(took) => Ok(took),
            Step::Data(took) => {
                body.push(at..at + took);
                Ok(took)
            }
            Step::End(took, trailers) => {
                self.trailers = trailers;
                self.end();
                Ok(took)
            }
        }
    }

    fn violation(&self, broken: Broken) -> Violation {
        match broken {
            Broken::Size => Violation::invalid("the size of a chunk"),
            Broken::Overlong => Violation::invalid("a chunk that is longer than its size"),
            Broken::Bare => Violation::invalid("a trailer that ends without a CR"),
            Broken::Field(why) => Violation::invalid(why),
            Broken::Framing => Violation::invalid("a length behind the body"),
            Broken::Bytes => Violation(format!("trailers or chunk extensions over {} bytes", self.limits.bytes)),
            Broken::Lines => Violation(format!("more than {} header lines", self.limits.lines)),
        }
    }
}

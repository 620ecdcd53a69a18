//! A client's connection: the bytes that arrive become heads, bodies and ends, or a refusal (RFC 9112).
//!
//! The verdict depends on the bytes only, not on where they were cut. Parsing and judging are apart, so that a scope of a
//! foreign server passes the same judge: `judge_scope`. A head that two readers could read differently is an attack, so
//! nothing is mended: a blank before a colon, a bare LF, a folded line, or a framing field in any but its plain form is
//! refused. Accepted on purpose: any token as a method, blanks between the words of a request line (it is written anew),
//! CR and LF before a request, chunk extensions (dropped), bytes from 0x80 in targets and values.

mod authority;
mod framing;
mod target;
#[cfg(test)]
mod tests;

use std::ops::Range;

use memchr::memchr;

use crate::chunks::{Broken, Chunked, Step};
use crate::fields::{is_token, Fields, Span, TOKEN};
pub use crate::section::Limits;
use crate::section::Section;
pub use framing::Body;

/// A verdict: the status of the answer, and a stable reason from a bounded set, for counters and logs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refusal {
    pub status: u16,
    pub reason: &'static str,
}

impl Refusal {
    const fn bad(reason: &'static str) -> Refusal {
        Refusal { status: 400, reason }
    }
}

/// A refused request, with what was read of its request line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refused {
    pub refusal: Refusal,
    pub method: Vec<u8>,
    pub target: Vec<u8>,
}

/// A head that was judged. Spans are positions in the bytes of `fields`, which begin with the request line.
#[derive(Clone, Debug)]
pub struct Head {
    pub fields: Fields,
    pub method: Span,
    pub path: Span,
    /// `Some` of nothing where the target ends with `?`.
    pub query: Option<Span>,
    /// The version is HTTP/1.1; else it is HTTP/1.0.
    pub modern: bool,
    pub body: Body,
    /// Another request may follow on the connection.
    pub keep_alive: bool,
    /// The client waits for `100 Continue`.
    pub expects: bool,
    /// Asks for an upgrade that may be granted. The bytes behind the head are the other protocol's.
    pub upgrade: bool,
}

impl Head {
    /// Return whether a body follows; without one the request ends with its head, and no `End` follows.
    pub fn has_body(&self) -> bool {
        self.body != Body::Octets(0)
    }
}

/// The result of some bytes, in order.
#[derive(Debug)]
pub enum Event {
    Head(Box<Head>),
    /// A piece of the body, or of what follows an upgrade: positions in the bytes that were fed.
    Body(Range<usize>),
    /// The end of a request that has a body, with its trailers.
    End(Fields),
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Before a request.
    Blank,
    Start,
    Fields,
    Octets(u64),
    Chunked,
    /// Behind a request for an upgrade.
    Raw,
    /// Behind the last request of the connection.
    Over,
}

/// The request line, once it was read.
#[derive(Clone, Copy, Debug)]
struct Start {
    method: Span,
    target: Span,
    modern: bool,
    /// Bytes of the line that do not count as the head's: all but the target.
    spare: usize,
}

/// Reads the requests of one connection.
#[derive(Debug)]
pub struct Reader {
    limits: Limits,
    state: State,
    section: Section,
    start: Option<Start>,
    /// CR and LF before the request.
    blank: usize,
    chunked: Option<Chunked>,
    keep_alive: bool,
    refused: Option<Refused>,
}

impl Reader {
    pub fn new(limits: Limits) -> Reader {
        Reader {
            limits: limits.bounded(),
            state: State::Blank,
            section: Section::default(),
            start: None,
            blank: 0,
            chunked: None,
            keep_alive: true,
            refused: None,
        }
    }

    /// Take the next bytes. Events are appended, also those before a refusal. After one, every call returns it.
    ///
    /// Bytes behind the last request of a connection are ignored.
    pub fn feed(&mut self, data: &[u8], events: &mut Vec<Event>) -> Result<(), Refused> {
        if let Some(refused) = &self.refused {
            return Err(refused.clone());
        }
        let mut at = 0;
        while let Some(rest) = data.get(at..).filter(|rest| !rest.is_empty()) {
            let took = match self.state {
                State::Blank => self.blank(rest),
                State::Start => self.start(rest),
                State::Fields => self.field(rest, events),
                State::Octets(left) => Ok(self.octets(left, at, rest.len(), events)),
                State::Chunked => self.chunk(at, rest, events),
                State::Raw => {
                    events.push(Event::Body(at..data.len()));
                    return Ok(());
                }
                State::Over => return Ok(()),
            };
            match took {
                Ok(bytes) => at += bytes,
                Err(refusal) => {
                    let (method, target) = self.request_line();
                    let refused = Refused { refusal, method, target };
                    self.section = Section::default();
                    self.refused = Some(refused.clone());
                    return Err(refused);
                }
            }
        }
        Ok(())
    }

    /// Return whether bytes of an incomplete head have arrived.
    pub fn in_head(&self) -> bool {
        self.blank > 0 || matches!(self.state, State::Start | State::Fields)
    }

    /// Return method and target of the head that is being read, as far as they have arrived.
    pub fn request_line(&self) -> (Vec<u8>, Vec<u8>) {
        let bytes = &self.section.fields.bytes;
        if let Some(start) = self.start {
            return (start.method.of(bytes).to_vec(), start.target.of(bytes).to_vec());
        }
        let Some((method, rest)) = memchr(b' ', bytes).and_then(|end| bytes.split_at_checked(end)) else {
            return (Vec::new(), Vec::new());
        };
        if !is_token(method) {
            return (Vec::new(), Vec::new());
        }
        let target = rest.split(|byte| *byte == b' ').find(|word| !word.is_empty()).unwrap_or_default();
        (method.to_vec(), target.split(|byte| *byte < b' ').next().unwrap_or_default().to_vec())
    }

    fn blank(&mut self, rest: &[u8]) -> Result<usize, Refusal> {
        let count = rest.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        self.blank = self.blank.saturating_add(count);
        if self.blank > self.limits.bytes {
            return Err(TOO_LARGE);
        }
        if count < rest.len() {
            self.state = State::Start;
        }
        Ok(count)
    }

    fn start(&mut self, rest: &[u8]) -> Result<usize, Refusal> {
        // At most one byte above the limit is looked at, so that the limit comes first wherever the bytes are cut.
        let limit = self.limits.bytes;
        let before = self.section.size();
        let room = limit.saturating_sub(self.blank + before);
        let (took, complete) = self.section.take(rest.get(..=room).unwrap_or(rest));
        let line = self.section.current();
        let method = memchr(b' ', line);
        if method.is_none_or(|end| end >= before) {
            // Other protocols are refused at their first byte that is not ours: they may never send a line.
            let fresh = line.get(before..method.unwrap_or(line.len())).unwrap_or_default();
            if method == Some(0) || !fresh.iter().all(|byte| TOKEN[*byte as usize]) {
                return Err(Refusal::bad("malformed_method"));
            }
        }
        if self.blank + line.len() > limit {
            return Err(if method.is_some() { TARGET_TOO_LONG } else { TOO_LARGE });
        }
        if complete {
            let (line, bare) = self.section.end_line();
            self.start = Some(self.read_start(line, bare)?);
            self.state = State::Fields;
        }
        Ok(took)
    }

    fn read_start(&self, line: Span, bare: bool) -> Result<Start, Refusal> {
        let malformed = Refusal::bad("malformed");
        let bytes = line.of(&self.section.fields.bytes);
        let end = memchr(b' ', bytes).ok_or(malformed)?;
        let blanks =
            |from: usize| bytes.get(from..).unwrap_or_default().iter().take_while(|byte| **byte == b' ').count();
        let first = end + blanks(end);
        let behind = bytes.get(first..).unwrap_or_default();
        let length = memchr(b' ', behind).unwrap_or(behind.len());
        let word = |start: usize, end: usize| Span { start: line.start + start as u32, end: line.start + end as u32 };
        let (method, target) = (word(0, end), word(first, first + length));
        let version = bytes.get(first + length + blanks(first + length)..).unwrap_or_default();
        let written = target.of(&self.section.fields.bytes);
        let name = method.of(&self.section.fields.bytes);
        if written.is_empty() {
            return Err(malformed);
        }
        if name != b"CONNECT" && !target::is_well_formed(written) {
            return Err(Refusal::bad("malformed_target"));
        }
        let modern = match version {
            b"HTTP/1.1" if !bare => true,
            b"HTTP/1.0" if !bare => false,
            b"" if length == behind.len() => return Err(UNSUPPORTED),
            // It begins the preface of HTTP/2, which reserves the method (RFC 9113 §11.6).
            _ if name == b"PRI" => return Err(malformed),
            b"HTTP/2.0" | b"HTTP/0.9" if !bare => return Err(UNSUPPORTED),
            _ => return Err(malformed),
        };
        if name == b"PRI" {
            return Err(malformed);
        }
        Ok(Start { method, target, modern, spare: self.section.size() - length })
    }

    fn field(&mut self, rest: &[u8], events: &mut Vec<Event>) -> Result<usize, Refusal> {
        let Some(start) = self.start else { return Err(Refusal::bad("malformed")) };
        // The empty line that ends a head is no part of it.
        let counted = |section: &Section| {
            let end = if matches!(section.current(), b"\r" | b"\r\n") { section.current().len() } else { 0 };
            (self.blank + section.size()).saturating_sub(start.spare + end)
        };
        let room = (self.limits.bytes + 2).saturating_sub(counted(&self.section));
        let (took, complete) = self.section.take(rest.get(..=room).unwrap_or(rest));
        if counted(&self.section) > self.limits.bytes {
            return Err(TOO_LARGE);
        }
        if !complete {
            return Ok(took);
        }
        let (line, bare) = self.section.end_line();
        if bare {
            return Err(Refusal::bad("malformed"));
        }
        if line.start < line.end {
            let mended = self.section.add(line).map_err(|_| Refusal::bad("malformed"))?;
            if mended {
                return Err(Refusal::bad("malformed")); // a blank before the colon: RFC 9112 §5.1
            }
            if self.section.fields.lines.len() > self.limits.lines {
                return Err(Refusal { status: 431, reason: "head_lines" });
            }
            return Ok(took);
        }
        let head = self.judged(start)?;
        self.blank = 0;
        self.start = None;
        self.keep_alive = head.keep_alive;
        self.state = match head.body {
            _ if head.upgrade => State::Raw,
            Body::Octets(0) => self.next(),
            Body::Octets(left) => State::Octets(left),
            Body::Chunked => {
                self.chunked = Some(Chunked::strict(self.limits));
                State::Chunked
            }
        };
        events.push(Event::Head(Box::new(head)));
        Ok(took)
    }

    /// Judge the complete head, and take it out. A refused one stays, for the report.
    fn judged(&mut self, start: Start) -> Result<Head, Refusal> {
        let fields = &self.section.fields;
        let bytes = &fields.bytes;
        let framing = framing::judge(fields.iter(), start.modern)?;
        let parts = target::judge(start.method.of(bytes), start.target.of(bytes), framing.host)?;
        let (body, keep_alive) = (framing.body, framing.keep_alive);
        let (expects, upgrade) = (framing.expects, framing.upgrade);
        let span = |range: Range<usize>| Span {
            start: start.target.start + range.start as u32,
            end: start.target.start + range.end as u32,
        };
        let mut fields = std::mem::take(&mut self.section).fields;
        let path = match parts.path {
            Some(path) => span(path),
            None => {
                let at = fields.bytes.len() as u32;
                fields.bytes.push(b'/');
                Span { start: at, end: at + 1 }
            }
        };
        let (method, modern) = (start.method, start.modern);
        Ok(Head { fields, method, path, query: parts.query.map(span), modern, body, keep_alive, expects, upgrade })
    }

    fn next(&self) -> State {
        if self.keep_alive {
            State::Blank
        } else {
            State::Over
        }
    }

    fn octets(&mut self, left: u64, at: usize, available: usize, events: &mut Vec<Event>) -> usize {
        let took = available.min(usize::try_from(left).unwrap_or(usize::MAX));
        events.push(Event::Body(at..at + took));
        self.state = match left - took as u64 {
            0 => {
                events.push(Event::End(Fields::default()));
                self.next()
            }
            left => State::Octets(left),
        };
        took
    }

    fn chunk(&mut self, at: usize, rest: &[u8], events: &mut Vec<Event>) -> Result<usize, Refusal> {
        let Some(chunked) = &mut self.chunked else { return Err(Refusal::bad("malformed_body")) };
        match chunked.take(rest) {
            Ok(Step::Framing(took)) => Ok(took),
            Ok(Step::Data(took)) => {
                events.push(Event::Body(at..at + took));
                Ok(took)
            }
            Ok(Step::End(took, trailers)) => {
                self.chunked = None;
                self.state = self.next();
                events.push(Event::End(trailers));
                Ok(took)
            }
            Err(Broken::Bytes | Broken::Lines) => Err(Refusal { status: 431, reason: "trailer_bytes" }),
            Err(_) => Err(Refusal::bad("malformed_body")),
        }
    }
}

const TOO_LARGE: Refusal = Refusal { status: 431, reason: "head_bytes" };
const TARGET_TOO_LONG: Refusal = Refusal { status: 414, reason: "target_bytes" };
const UNSUPPORTED: Refusal = Refusal { status: 505, reason: "version" };

/// A head as a server that is not ours presents it. It has already dropped the authority of an absolute target and a
/// fragment, and may have added trailers to the fields, which cannot be detected here.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    pub method: &'a [u8],
    /// `1.0`, `1.1`, `2` or `3`.
    pub version: &'a [u8],
    pub path: &'a [u8],
    pub query: &'a [u8],
}

/// Judge a head that another server has parsed.
pub fn judge_scope<'a>(scope: &Scope<'_>, headers: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Result<(), Refusal> {
    let mut fields = Fields::default();
    for (name, value) in headers {
        // A server for HTTP/2 or HTTP/3 may accept bytes in fields that end a line in HTTP/1.1.
        if !is_token(name) {
            return Err(Refusal::bad("field_name"));
        }
        if value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
            return Err(Refusal::bad("field_value"));
        }
        fields.push(name, value);
    }
    // HTTP/2 and HTTP/3 servers pass `:authority` as Host, and have no transfer codings; the rest is checked as 1.1.
    let framing = framing::judge(fields.iter(), scope.version != b"1.0")?;
    if !is_token(scope.method) {
        return Err(Refusal::bad("method_invalid"));
    }
    let target = if scope.query.is_empty() { scope.path.to_vec() } else { [scope.path, b"?", scope.query].concat() };
    target::judge(scope.method, &target, framing.host).map(|_| ())
}

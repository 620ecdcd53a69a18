//! The framing of a chunked body (RFC 9112 §7.1), byte by byte, so that no cut of the bytes changes the result.
//!
//! Requests are read strictly, answers leniently, because old servers pad sizes. Extensions are read and dropped; their grammar is checked, since a reader that ends a line elsewhere finds another body.

use crate::fields::{Fields, Kind, TOKEN};
use crate::section::{Limits, Section};

/// Most digits of a chunk's size.
const DIGITS: u8 = 16;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    Size,
    Padding,
    ExtensionStart,
    ExtensionName,
    ValueStart,
    Value,
    Quoted,
    Escaped,
    BehindQuote,
    LineFeed,
}

/// Reads a chunk's size line.
#[derive(Clone, Copy, Debug)]
pub struct SizeLine {
    place: Place,
    digits: u8,
    size: u64,
    /// Blanks behind the size are read (RFC 9112 §7.1.1), as old servers write them.
    lenient: bool,
    padded: bool,
    /// Bytes behind the size so far, line end included.
    pub extension: usize,
}

/// The line is malformed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Malformed;

impl Default for SizeLine {
    fn default() -> Self {
        SizeLine { place: Place::Size, digits: 0, size: 0, lenient: false, padded: false, extension: 0 }
    }
}

impl SizeLine {
    /// A line that may have blanks behind its size.
    pub fn padded() -> SizeLine {
        SizeLine { lenient: true, ..SizeLine::default() }
    }

    /// Return whether blanks stand behind the size.
    pub fn was_padded(&self) -> bool {
        self.padded
    }

    /// Take the next byte. Returns the size behind the line's last byte.
    pub fn take(&mut self, byte: u8) -> Result<Option<u64>, Malformed> {
        if self.place != Place::Size {
            self.extension = self.extension.saturating_add(1);
        }
        let token = TOKEN[byte as usize];
        self.place = match (self.place, byte) {
            (Place::Size | Place::Padding, b'\r') if self.digits > 0 => Place::LineFeed,
            (Place::Size | Place::Padding, b';') if self.digits > 0 => Place::ExtensionStart,
            (Place::Size | Place::Padding, b' ' | b'\t') if self.lenient && self.digits > 0 => {
                self.padded = true;
                Place::Padding
            }
            (Place::Size, _) => {
                let digit = (byte as char).to_digit(16).ok_or(Malformed)?;
                // Zeros in front are no digits of the size, but the line has one.
                if self.digits == DIGITS && self.size > 0 {
                    return Err(Malformed);
                }
                self.digits = if self.size == 0 { 1 } else { self.digits + 1 };
                self.size = self.size << 4 | u64::from(digit);
                Place::Size
            }
            (Place::ExtensionStart | Place::ExtensionName, _) if token => Place::ExtensionName,
            (Place::ExtensionName, b'=') => Place::ValueStart,
            (Place::ValueStart, b'"') => Place::Quoted,
            (Place::ValueStart | Place::Value, _) if token => Place::Value,
            (Place::ExtensionName | Place::Value | Place::BehindQuote, b';') => Place::ExtensionStart,
            (Place::ExtensionName | Place::Value | Place::BehindQuote, b'\r') => Place::LineFeed,
            (Place::Quoted, b'"') => Place::BehindQuote,
            (Place::Quoted, b'\\') => Place::Escaped,
            (Place::Quoted | Place::Escaped, b'\t' | b' '..=b'~' | 0x80..) => Place::Quoted,
            (Place::LineFeed, b'\n') => return Ok(Some(self.size)),
            _ => return Err(Malformed),
        };
        Ok(None)
    }
}

#[derive(Clone, Copy, Debug)]
enum Part {
    Size(SizeLine),
    Data(u64),
    Return,
    Feed,
    Trailers,
}

/// The result of reading some bytes of a chunked body, with their number.
#[derive(Debug)]
pub enum Step {
    Framing(usize),
    Data(usize),
    /// The body is complete; with its trailers.
    End(usize, Fields),
}

/// The reason why bytes are no chunked body.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Broken {
    Size,
    /// A chunk is longer than its size.
    Overlong,
    /// A trailer ends without a CR.
    Bare,
    Field(&'static str),
    /// A trailer names a length, or (in a strict body) a transfer coding.
    Framing,
    /// More bytes than permitted that are no body.
    Bytes,
    /// More trailers than permitted.
    Lines,
}

/// Reads a chunked body and its trailers.
#[derive(Clone, Debug)]
pub struct Chunked {
    limits: Limits,
    lenient: bool,
    part: Part,
    /// Bytes of framing since the last byte of the body.
    quiet: usize,
    section: Section,
    /// Something was written askew; false in a strict body.
    pub mended: bool,
}

impl Chunked {
    /// A body in which each deviation is refused.
    pub fn strict(limits: Limits) -> Chunked {
        let part = Part::Size(SizeLine::default());
        Chunked { limits, lenient: false, part, quiet: 0, section: Section::default(), mended: false }
    }

    /// A body that may be written askew as old servers do.
    pub fn lenient(limits: Limits) -> Chunked {
        Chunked { lenient: true, part: Part::Size(SizeLine::padded()), ..Chunked::strict(limits) }
    }

    /// Read the next bytes, which are at least one. The caller ends the body after `End`.
    pub fn take(&mut self, rest: &[u8]) -> Result<Step, Broken> {
        match self.part {
            Part::Size(line) => self.size(line, rest),
            Part::Data(left) => {
                let took = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                self.quiet = 0;
                self.part = match left - took as u64 {
                    0 => Part::Return,
                    left => Part::Data(left),
                };
                Ok(Step::Data(took))
            }
            Part::Return => self.expect(rest, b'\r', Part::Feed),
            Part::Feed => self.expect(rest, b'\n', self.next_size()),
            Part::Trailers => self.trailer(rest),
        }
    }

    fn next_size(&self) -> Part {
        Part::Size(if self.lenient { SizeLine::padded() } else { SizeLine::default() })
    }

    fn size(&mut self, mut line: SizeLine, rest: &[u8]) -> Result<Step, Broken> {
        for (index, byte) in rest.iter().enumerate() {
            self.quieter(1)?;
            if let Some(size) = line.take(*byte).map_err(|_| Broken::Size)? {
                self.mended |= line.was_padded();
                self.part = if size == 0 { Part::Trailers } else { Part::Data(size) };
                return Ok(Step::Framing(index + 1));
            }
        }
        self.part = Part::Size(line);
        Ok(Step::Framing(rest.len()))
    }

    fn expect(&mut self, rest: &[u8], byte: u8, next: Part) -> Result<Step, Broken> {
        if rest.first() != Some(&byte) {
            return Err(Broken::Overlong);
        }
        self.quieter(1)?;
        self.part = next;
        Ok(Step::Framing(1))
    }

    fn quieter(&mut self, bytes: usize) -> Result<(), Broken> {
        self.quiet = self.quiet.saturating_add(bytes);
        if self.quiet > self.limits.bytes {
            return Err(Broken::Bytes);
        }
        Ok(())
    }

    fn trailer(&mut self, rest: &[u8]) -> Result<Step, Broken> {
        let (took, complete) = self.section.take(rest);
        self.quieter(took)?;
        if !complete {
            return Ok(Step::Framing(took));
        }
        let (line, bare) = self.section.end_line();
        if bare {
            return Err(Broken::Bare);
        }
        if line.start == line.end {
            return Ok(Step::End(took, std::mem::take(&mut self.section).fields));
        }
        let mended = self.section.add(line).map_err(Broken::Field)?;
        if mended && !self.lenient {
            return Err(Broken::Field("a blank before a colon"));
        }
        self.mended |= mended;
        if self.section.fields.lines.len() > self.limits.lines {
            return Err(Broken::Lines);
        }
        match self.section.fields.lines.last().map(|line| line.kind) {
            Some(Kind::TransferEncoding) if self.lenient => self.mended = true,
            Some(Kind::ContentLength | Kind::TransferEncoding) => return Err(Broken::Framing),
            _ => {}
        }
        Ok(Step::Framing(took))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &[u8]) -> Result<Option<u64>, Malformed> {
        let mut size = SizeLine::default();
        let mut last = Ok(None);
        for byte in line {
            last = size.take(*byte);
            last?;
        }
        last
    }

    #[test]
    fn sizes_are_read_and_extensions_dropped() {
        for (line, size) in [
            (&b"0\r\n"[..], 0),
            (b"00aF\r\n", 0xaf),
            (b"000000000000000000005\r\n", 5),
            (b"3;a\r\n", 3),
            (b"3;a=b;c=\"d\\\"\r\"\r\n", 3),
            (b"ffffffffffffffff\r\n", u64::MAX),
        ] {
            if line.contains(&b'\\') {
                assert_eq!(read(line), Err(Malformed));
            } else {
                assert_eq!(read(line), Ok(Some(size)));
            }
        }
        assert_eq!(read(b"3;a=b;c=\"d\\\";\"\r\n"), Ok(Some(3)));
    }

    #[test]
    fn blanks_behind_a_size_are_read_where_that_is_permitted() {
        for line in [&b"3 \r\n"[..], b"3 \t\r\n", b"3 ;a\r\n"] {
            let mut size = SizeLine::padded();
            let last = line.iter().map(|byte| size.take(*byte)).last();
            assert_eq!((last, size.was_padded()), (Some(Ok(Some(3))), true));
            assert_eq!(read(line), Err(Malformed));
        }
        for line in [&b" 3\r\n"[..], b"3 3\r\n", b" \r\n"] {
            let mut size = SizeLine::padded();
            assert!(line.iter().any(|byte| size.take(*byte).is_err()));
        }
    }

    #[test]
    fn odd_lines_are_refused() {
        for line in [
            &b"\r\n"[..],
            b";a\r\n",
            b"3 \r\n",
            b" 3\r\n",
            b"3\n",
            b"3\r\r\n",
            b"0x3\r\n",
            b"-3\r\n",
            b"3;\r\n",
            b"3; a\r\n",
            b"3;a=\r\n",
            b"3;a=\"\n\"\r\n",
            b"3;a=\"b\"c\r\n",
            b"10000000000000000\r\n",
        ] {
            assert_eq!(read(line), Err(Malformed), "{line:?}");
        }
    }
}

//! Field lines as they arrive: each byte is looked at once, wherever the bytes are cut.

use memchr::memchr;

use crate::fields::{classify, Fields, Line, Span, LOWER, TOKEN};

/// Limits of what a peer sends beside bodies: a head, trailers, and a chunk's line. Answers say how they count heads.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub bytes: usize,
    /// Fields in a head or in the trailers.
    pub lines: usize,
}

impl Limits {
    /// Return the limits with positions that 32 bits can hold.
    pub fn bounded(self) -> Limits {
        Limits { bytes: self.bytes.min(1 << 30), ..self }
    }
}

/// The fields of one head or one trailer section that is being read. What is kept is what arrived, so its size is bounded
/// by the caller's limit of bytes.
#[derive(Clone, Debug, Default)]
pub struct Section {
    pub fields: Fields,
    /// Position of the present line's first byte.
    line: usize,
}

impl Section {
    /// Bytes that were taken.
    pub fn size(&self) -> usize {
        self.fields.bytes.len()
    }

    /// Bytes of the line that is read now.
    pub fn current(&self) -> &[u8] {
        self.fields.bytes.get(self.line..).unwrap_or_default()
    }

    /// Take bytes up to the end of the line. Returns how many were taken, and whether the line is complete.
    pub fn take(&mut self, data: &[u8]) -> (usize, bool) {
        let (took, complete) = match memchr(b'\n', data) {
            Some(end) => (end + 1, true),
            None => (data.len(), false),
        };
        self.fields.bytes.extend_from_slice(data.get(..took).unwrap_or_default());
        (took, complete)
    }

    /// Return the complete line without its end, and whether a bare LF ended it. The next line begins.
    pub fn end_line(&mut self) -> (Span, bool) {
        let start = self.line;
        self.line = self.fields.bytes.len();
        let line = self.fields.bytes.get(start..).unwrap_or_default();
        let (length, bare) = match line {
            [content @ .., b'\r', b'\n'] => (content.len(), false),
            [content @ .., b'\n'] => (content.len(), true),
            other => (other.len(), true),
        };
        (Span { start: start as u32, end: (start + length) as u32 }, bare)
    }

    /// Read a line as a field. Returns true if its name was mended: a blank before the colon is no part of it (RFC 9112
    /// §5.1). The name is changed to lower case; blanks around the value are no part of it (RFC 9110 §5.5).
    pub fn add(&mut self, line: Span) -> Result<bool, &'static str> {
        let start = line.start as usize;
        let Some(bytes) = self.fields.bytes.get_mut(start..line.end as usize) else { return Err("a field line") };
        let Some(colon) = memchr(b':', bytes) else { return Err("a line without a colon") };
        let mut end = colon;
        while end > 0 && matches!(bytes.get(end - 1), Some(b' ' | b'\t')) {
            end -= 1;
        }
        let Some(name) = bytes.get_mut(..end).filter(|name| !name.is_empty()) else {
            return Err("a field without a name");
        };
        for byte in name.iter_mut() {
            if !TOKEN[*byte as usize] {
                return Err("the name of a field"); // a folded line begins with a blank, which is no token either
            }
            *byte = LOWER[*byte as usize];
        }
        let kind = classify(name);
        let value = bytes.get(colon + 1..).unwrap_or_default();
        if !is_value(value) {
            return Err("a control character in a field");
        }
        let behind = value.trim_ascii_start().len();
        let from = line.end - behind as u32;
        let to = from + value.trim_ascii().len() as u32;
        self.fields.lines.push(Line {
            name: Span { start: line.start, end: (start + end) as u32 },
            value: Span { start: from, end: to },
            kind,
        });
        Ok(end < colon)
    }
}

/// Return whether these bytes may stand in a field's value: visible ones, blanks, and those from 0x80.
pub fn is_value(value: &[u8]) -> bool {
    // No early end, so that the compiler compares sixteen bytes at once.
    !value.iter().fold(false, |bad, byte| bad | ((*byte < b' ') & (*byte != b'\t')) | (*byte == 0x7f))
}

/// Return the parts of a comma-separated list, without blanks around them. Empty parts are kept.
pub fn parts(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &[u8]) -> Result<(Vec<u8>, Vec<u8>, bool), &'static str> {
        let mut section = Section::default();
        assert_eq!(section.take(line), (line.len(), true));
        let (span, _) = section.end_line();
        let mended = section.add(span)?;
        let (name, value, _) = section.fields.iter().next().expect("a field");
        Ok((name.to_vec(), value.to_vec(), mended))
    }

    #[test]
    fn names_are_lower_case_and_values_have_no_blanks_around_them() {
        assert_eq!(read(b"X-Aa: \t b c \t\r\n"), Ok((b"x-aa".to_vec(), b"b c".to_vec(), false)));
        assert_eq!(read(b"X:\n"), Ok((b"x".to_vec(), b"".to_vec(), false)));
        assert_eq!(read(b"X \t:  \r\n"), Ok((b"x".to_vec(), b"".to_vec(), true)));
        assert_eq!(read(b"X: caf\xe9\r\n"), Ok((b"x".to_vec(), b"caf\xe9".to_vec(), false)));
    }

    #[test]
    fn what_is_no_field_is_refused() {
        for line in
            [&b"x\r\n"[..], b": a\r\n", b" : a\r\n", b" x: a\r\n", b"\tx: a\r\n", b"x y: a\r\n", b"x\xe9: a\r\n"]
        {
            assert!(read(line).is_err(), "{line:?}");
        }
        for byte in (0..=255u8).filter(|byte| (*byte < b' ' && *byte != b'\t' && *byte != b'\n') || *byte == 0x7f) {
            assert!(read(&[b'x', b':', b'a', byte, b'b', b'\r', b'\n']).is_err(), "{byte}");
        }
    }
}

//! The framing of an answer's body and the future of its connection, by the fields of its head.

use super::Violation;
use crate::fields::{Fields, Kind, Span};
use crate::section::parts;

/// Digits of the longest length that is accepted: with more, readers compute different ones.
const LENGTH_DIGITS: usize = 18;
const TIMEOUT: &[u8] = b"timeout";

/// The facts about body and connection that a head's fields state.
#[derive(Debug, Default)]
pub struct Framing {
    pub length: Option<u64>,
    pub chunked: bool,
    pub close: bool,
    pub keep: bool,
    pub upgrade: bool,
    pub upgrade_listed: bool,
    pub kept_for: Option<u32>,
    pub mended: bool,
}

impl Framing {
    /// Judge the fields. Of equal lengths one remains, in its shortest form, so that every reader computes the same.
    pub fn of(fields: &mut Fields) -> Result<Framing, Violation> {
        let mut framing = Framing::default();
        let mut first = None;
        for (index, (_, value, kind)) in fields.iter().enumerate() {
            match kind {
                Kind::ContentLength => {
                    first = first.or(Some(index));
                    framing.read_length(value)?;
                }
                Kind::TransferEncoding => {
                    if framing.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                        return Err(Violation("a transfer coding other than chunked".into()));
                    }
                    framing.chunked = true;
                }
                Kind::Connection => {
                    for part in parts(value) {
                        framing.close |= contains(part, b"close"); // of `x-close` too: to close is safe
                        framing.keep |= part.eq_ignore_ascii_case(b"keep-alive");
                        framing.upgrade_listed |= part.eq_ignore_ascii_case(b"upgrade");
                    }
                }
                Kind::Upgrade => framing.upgrade = true,
                Kind::KeepAlive => framing.kept_for = framing.kept_for.or_else(|| stated_timeout(value)),
                _ => {}
            }
        }
        let (Some(length), Some(first)) = (framing.length, first) else { return Ok(framing) };
        if framing.chunked {
            return Err(Violation::invalid("Content-Length and Transfer-Encoding"));
        }
        if framing.mended {
            let mut at = 0..;
            fields.lines.retain(|line| {
                let index = at.next();
                line.kind != Kind::ContentLength || index == Some(first)
            });
        }
        let digits = length.to_string();
        let start = fields.bytes.len() as u32;
        if let Some(line) = fields.lines.get_mut(first).filter(|line| line.value.of(&fields.bytes) != digits.as_bytes())
        {
            fields.bytes.extend_from_slice(digits.as_bytes());
            line.value = Span { start, end: start + digits.len() as u32 };
        }
        Ok(framing)
    }

    fn read_length(&mut self, value: &[u8]) -> Result<(), Violation> {
        for digits in parts(value) {
            if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
                return Err(Violation::invalid("Content-Length"));
            }
            let zeros = digits.iter().take_while(|digit| **digit == b'0').count();
            let digits = digits.get(zeros..).unwrap_or_default();
            if digits.len() > LENGTH_DIGITS {
                return Err(Violation::invalid("Content-Length"));
            }
            let length = digits.iter().fold(0, |length, digit| length * 10 + u64::from(digit - b'0'));
            match self.length {
                None => self.length = Some(length),
                Some(before) if before == length => self.mended = true,
                Some(_) => return Err(Violation::invalid("two lengths")),
            }
        }
        Ok(())
    }
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window.eq_ignore_ascii_case(word))
}

/// Return whether a reason phrase is visible text (in Latin-1), which cannot be taken for anything else.
pub fn is_printable(reason: &[u8]) -> bool {
    reason.iter().all(|byte| matches!(byte, b' '..=b'~' | 0xa1..=0xac | 0xae..))
}

/// Return the seconds in a `Keep-Alive` field: its parameter `timeout`, in at most nine digits.
pub fn stated_timeout(value: &[u8]) -> Option<u32> {
    for at in 0..value.len() {
        let before = at.checked_sub(1).and_then(|at| value.get(at));
        if !matches!(before, None | Some(b',' | b';' | b' ' | b'\t')) {
            continue;
        }
        let word = value.get(at..).unwrap_or_default();
        let Some((_, rest)) =
            word.split_at_checked(TIMEOUT.len()).filter(|(name, _)| name.eq_ignore_ascii_case(TIMEOUT))
        else {
            continue;
        };
        let Some(rest) = rest.trim_ascii_start().strip_prefix(b"=") else { continue };
        let rest = rest.trim_ascii_start();
        let digits = rest.strip_prefix(b"\"").unwrap_or(rest).iter().take(9).take_while(|byte| byte.is_ascii_digit());
        let seconds = digits.fold(None, |sum, digit| Some(sum.unwrap_or(0) * 10 + u32::from(digit - b'0')));
        if seconds.is_some() {
            return seconds;
        }
    }
    None
}

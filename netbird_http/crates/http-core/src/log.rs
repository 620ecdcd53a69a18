//! The access log: an exchange as a line of JSON, and as the message that management stores.
//!
//! Every text is encoded, so no client can end a text, a line or a field. Nothing is remembered between exchanges: encoding a
//! text costs less than looking it up.

use std::borrow::Cow;

/// Maximum characters of a path in an entry: the queue of entries is bounded by their number, so each must be bounded.
pub const LONGEST_PATH: usize = 2048;
/// The last second of the year 9999. Beyond it, a year would not fit into its four digits.
const LAST_SECOND: i64 = 253_402_300_799;
const NANOS: i128 = 1_000_000_000;

/// The facts about an exchange that both forms report.
#[derive(Clone, Copy, Debug)]
pub struct Ended<'a> {
    pub id: &'a str,
    /// Seconds since the epoch at which the head was complete.
    pub started: f64,
    /// Nanoseconds from then to the end.
    pub duration: i64,
    pub method: &'a str,
    pub host: &'a str,
    /// The raw path, without its query.
    pub path: &'a [u8],
    pub status: u64,
    pub received: u64,
    pub sent: u64,
    pub client: &'a str,
    /// Code of a refusal; in a line also of a failure. Empty if there is none.
    pub code: &'a str,
    /// Refusals of guards that only observe.
    pub observed: &'a str,
}

/// Append a line of the operator's log, line end included.
///
/// `end` and `caller` are members that are written already: `,"name":value…`.
pub fn line(exchange: &Ended, scheme: &str, end: &[u8], tries: usize, caller: &[u8], out: &mut Vec<u8>) {
    let second = exchange.started as i64;
    let micros = ((exchange.started - second as f64) * 1e6) as i64;
    out.extend_from_slice(b"{\"timestamp\":\"");
    date(second, out);
    out.push(b'.');
    padded(micros.unsigned_abs(), 6, out);
    out.extend_from_slice(b"Z\",\"level\":\"info\",\"event\":\"exchange.done\",\"exchange\":");
    text(exchange.id, out);
    member(b"method", exchange.method, out);
    member(b"scheme", scheme, out);
    member(b"host", exchange.host, out);
    out.extend_from_slice(b",\"path\":\"");
    exchange.path.iter().for_each(|byte| escape(*byte, true, out));
    out.extend_from_slice(b"\",\"status\":");
    decimal(exchange.status, out);
    out.extend_from_slice(b",\"duration_ms\":");
    let micros = exchange.duration.max(0) as u64 / 1000;
    decimal(micros / 1000, out);
    out.push(b'.');
    padded(micros % 1000, 3, out);
    out.extend_from_slice(b",\"bytes_received\":");
    decimal(exchange.received, out);
    out.extend_from_slice(b",\"bytes_sent\":");
    decimal(exchange.sent, out);
    member(b"client", exchange.client, out);
    out.extend_from_slice(end);
    if tries > 1 {
        out.extend_from_slice(b",\"tries\":");
        decimal(tries as u64, out);
    }
    out.extend_from_slice(caller);
    if !exchange.code.is_empty() {
        member(b"code", exchange.code, out);
    }
    if !exchange.observed.is_empty() {
        member(b"observed", exchange.observed, out);
    }
    out.extend_from_slice(b"}\n");
}

/// The facts that only management stores. Empty texts stand for none.
#[derive(Clone, Copy, Debug)]
pub struct Account<'a> {
    pub account: &'a str,
    pub service: &'a str,
    pub mechanism: &'a str,
    pub user: &'a str,
}

/// Append the fields of an `AccessLog` message (protobuf), without the groups of the caller.
pub fn entry(exchange: &Ended, account: &Account, out: &mut Vec<u8>) {
    let duration = exchange.duration.max(0);
    let ended = ((exchange.started * 1e9) as i128).saturating_add(i128::from(duration));
    let seconds = ended.div_euclid(NANOS) as u64;
    let nanos = ended.rem_euclid(NANOS) as u64;
    out.extend_from_slice(&[0x0a, (2 + width(seconds) + width(nanos)) as u8, 0x08]);
    varint(seconds, out);
    out.push(0x10);
    varint(nanos, out);
    for (tag, text) in [(0x12, exchange.id), (0x1a, account.account), (0x22, account.service), (0x2a, exchange.host)] {
        sized(tag, text.as_bytes(), out);
    }
    sized(0x32, readable(exchange.path).as_bytes(), out);
    out.push(0x38);
    varint(duration as u64 / 1_000_000, out);
    sized(0x42, exchange.method.as_bytes(), out);
    out.push(0x48);
    varint(exchange.status, out);
    for (tag, text) in [(0x52, exchange.client), (0x5a, account.mechanism), (0x62, account.user)] {
        sized(tag, text.as_bytes(), out);
    }
    out.extend_from_slice(&[0x68, u8::from(!matches!(exchange.status, 401 | 403)), 0x70]);
    varint(exchange.received, out);
    out.push(0x78);
    varint(exchange.sent, out);
    out.extend_from_slice(b"\x82\x01\x04http");
    metadata("code", exchange.code, out);
    metadata("observed", exchange.observed, out);
}

fn metadata(key: &str, value: &str, out: &mut Vec<u8>) {
    if value.is_empty() {
        return;
    }
    out.extend_from_slice(&[0x8a, 0x01]);
    varint((2 + key.len() + 1 + width(value.len() as u64) + value.len()) as u64, out);
    sized(0x0a, key.as_bytes(), out);
    sized(0x12, value.as_bytes(), out);
}

/// Return a path percent-decoded, as management shows it. Some databases refuse a NUL, so it is replaced.
fn readable(path: &[u8]) -> Cow<'_, str> {
    // Three bytes of a path are at least one character of the result.
    let decoded = if path.contains(&b'%') { Cow::Owned(unquoted(path)) } else { Cow::Borrowed(path) };
    let text = match decoded {
        Cow::Borrowed(bytes) => String::from_utf8_lossy(bytes),
        Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
    };
    let text = if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { text };
    match text.char_indices().nth(LONGEST_PATH).filter(|_| text.len() > LONGEST_PATH) {
        Some((end, _)) => Cow::Owned(text.get(..end).unwrap_or_default().to_owned()),
        None => text,
    }
}

fn unquoted(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((byte, behind)) = rest.split_first() {
        rest = behind;
        if *byte == b'%' {
            if let [high, low, behind @ ..] = rest {
                if let (Some(high), Some(low)) = ((*high as char).to_digit(16), (*low as char).to_digit(16)) {
                    out.push((high << 4 | low) as u8);
                    rest = behind;
                    continue;
                }
            }
        }
        out.push(*byte);
    }
    out
}

fn member(name: &[u8], value: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name);
    out.extend_from_slice(b"\":");
    text(value, out);
}

/// Append a JSON text.
fn text(value: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    if value.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
        out.extend_from_slice(value.as_bytes());
    } else {
        value.bytes().for_each(|byte| escape(byte, false, out));
    }
    out.push(b'"');
}

/// Append a byte of a JSON text. `latin` reads bytes from 0x80 as Latin-1; else they are parts of UTF-8.
fn escape(byte: u8, latin: bool, out: &mut Vec<u8>) {
    let short = match byte {
        b'"' | b'\\' => byte,
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        8 => b'b',
        12 => b'f',
        0..=0x1f => {
            out.extend_from_slice(b"\\u00");
            out.extend([byte >> 4, byte & 15].map(|digit| if digit < 10 { b'0' + digit } else { b'a' + digit - 10 }));
            return;
        }
        0x80.. if latin => {
            out.extend_from_slice(&[0xc0 | byte >> 6, 0x80 | byte & 0x3f]);
            return;
        }
        _ => {
            out.push(byte);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

fn decimal(number: u64, out: &mut Vec<u8>) {
    let digits = number.checked_ilog10().unwrap_or(0) as usize + 1;
    padded(number, digits, out);
}

/// Append the last `digits` digits of a number.
fn padded(mut number: u64, digits: usize, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + digits, b'0');
    for place in out.iter_mut().skip(start).rev() {
        *place = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Append a moment in UTC, as `2023-11-14T22:13:20`. Moments outside the years 1970 to 9999 are cut to them.
fn date(second: i64, out: &mut Vec<u8>) {
    let second = second.clamp(0, LAST_SECOND) as u64;
    let (days, second) = (second / 86400, second % 86400);
    // Years begin in March here, so that the leap day is the last one; an era has 400 of them.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    padded(era * 400 + year + later, 4, out);
    for (mark, number) in
        [(b'-', month), (b'-', day), (b'T', second / 3600), (b':', second / 60 % 60), (b':', second % 60)]
    {
        out.push(mark);
        padded(number, 2, out);
    }
}

/// Return how many bytes `varint` appends.
fn width(number: u64) -> usize {
    (64 - (number | 1).leading_zeros() as usize).div_ceil(7)
}

/// Append a number in seven bits per byte.
fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn sized(tag: u8, data: &[u8], out: &mut Vec<u8>) {
    out.push(tag);
    varint(data.len() as u64, out);
    out.extend_from_slice(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dated(second: i64) -> String {
        let mut out = Vec::new();
        date(second, &mut out);
        String::from_utf8(out).expect("ASCII")
    }

    #[test]
    fn moments_are_dates() {
        assert_eq!(dated(0), "1970-01-01T00:00:00");
        assert_eq!(dated(951_782_400), "2000-02-29T00:00:00");
        assert_eq!(dated(1_700_000_000), "2023-11-14T22:13:20");
        assert_eq!(dated(4_107_542_399), "2100-02-28T23:59:59");
        assert_eq!(dated(4_107_542_400), "2100-03-01T00:00:00");
        assert_eq!(dated(LAST_SECOND), "9999-12-31T23:59:59");
        assert_eq!(dated(i64::MAX), dated(LAST_SECOND));
        assert_eq!(dated(i64::MIN), dated(0));
    }

    #[test]
    fn numbers_take_as_many_bytes_as_stated() {
        for number in [0, 1, 127, 128, 16383, 16384, u64::from(u32::MAX), u64::MAX] {
            let mut out = Vec::new();
            varint(number, &mut out);
            assert_eq!(out.len(), width(number), "{number}");
            out.clear();
            decimal(number, &mut out);
            assert_eq!(out, number.to_string().into_bytes());
        }
    }

    #[test]
    fn no_text_ends_its_quotes() {
        for byte in 0..=255 {
            let mut out = Vec::new();
            escape(byte, true, &mut out);
            assert!(out.iter().all(|byte| *byte >= b' ') && out != b"\"" && out != b"\\");
        }
    }

    #[test]
    fn odd_moments_harm_nothing() {
        let exchange = Ended {
            id: "",
            started: f64::NAN,
            duration: i64::MIN,
            method: "",
            host: "",
            path: b"%",
            status: u64::MAX,
            received: u64::MAX,
            sent: 0,
            client: "",
            code: "",
            observed: "",
        };
        for started in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.5, 1e300] {
            let exchange = Ended { started, ..exchange };
            line(&exchange, "", b"", 0, b"", &mut Vec::new());
            entry(&exchange, &Account { account: "", service: "", mechanism: "", user: "" }, &mut Vec::new());
            entry(
                &Ended { duration: i64::MAX, ..exchange },
                &Account { account: "", service: "", mechanism: "", user: "" },
                &mut Vec::new(),
            );
        }
    }
}

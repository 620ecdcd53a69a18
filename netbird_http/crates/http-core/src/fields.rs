//! Names of fields: their grammar, the spelling under which all aliases are equal, and the one table of known names.
//!
//! A rule about a name is applied to its folded form, because CGI-style upstreams read `X_NetBird_User` and
//! `X-NetBird-User` as one variable, and some map dots the same way.

/// The treatment of a field because of its name. Every name is classified here and nowhere else.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    Ordinary,
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    Upgrade,
    Expect,
    Te,
    Trailer,
    KeepAlive,
    /// `http2-settings`, `proxy-authenticate`, `proxy-authorization`, `proxy-connection`: they end at one hop.
    HopByHop,
    Via,
    Cookie,
    SetCookie,
    Location,
    /// `forwarded`, `x-real-ip` and every `x-forwarded-…`: by them an upstream learns the client's address.
    Forwarding,
    /// `x-netbird-…`: the core's, under every alias.
    Reserved,
    /// Another spelling of a name that frames a message or ends at one hop: `content_length`. An upstream may fold it.
    Alias(Known),
}

/// The names of which an alias is dangerous.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Known {
    Framing,
    Hop,
    Other,
}

/// Position of bytes in a head's buffer.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}

impl Span {
    /// Return the bytes at this position.
    pub fn of<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.start as usize..self.end as usize]
    }
}

/// A field line: its name in lower case, and its value without blanks around it.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    pub name: Span,
    pub value: Span,
    pub kind: Kind,
}

/// The fields of a head in the order they came, duplicates kept. Names are in lower case in `bytes`.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    pub bytes: Vec<u8>,
    pub lines: Vec<Line>,
}

impl Fields {
    /// Iterate over name, value and kind, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8], Kind)> {
        self.lines.iter().map(|line| (line.name.of(&self.bytes), line.value.of(&self.bytes), line.kind))
    }

    /// Append a line from elsewhere (a scope, a plugin). The name is changed to lower case; nothing else is checked.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        let at = self.bytes.len() as u32;
        self.bytes.extend(name.iter().map(|byte| LOWER[*byte as usize]));
        let middle = self.bytes.len() as u32;
        self.bytes.extend_from_slice(value);
        let end = self.bytes.len() as u32;
        let name = Span { start: at, end: middle };
        let kind = classify(name.of(&self.bytes));
        self.lines.push(Line { name, value: Span { start: middle, end }, kind });
    }
}

const fn token_table() -> [bool; 256] {
    let mut table = [false; 256];
    let marks = b"!#$%&'*+-.^_`|~";
    let mut at = 0;
    while at < marks.len() {
        table[marks[at] as usize] = true;
        at += 1;
    }
    let mut byte = 0;
    while byte < 256 {
        let letter = byte as u8;
        if letter.is_ascii_alphanumeric() {
            table[byte] = true;
        }
        byte += 1;
    }
    table
}

const fn lower_table(folds: bool) -> [u8; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let letter = (byte as u8).to_ascii_lowercase();
        table[byte] = if folds && (letter == b'_' || letter == b'.') { b'-' } else { letter };
        byte += 1;
    }
    table
}

/// Bytes of a token (RFC 9110 §5.6.2).
pub static TOKEN: [bool; 256] = token_table();
/// A byte in lower case.
pub static LOWER: [u8; 256] = lower_table(false);
/// A byte of a name as all aliases share it: lower case, with `_` and `.` replaced by `-`.
pub static FOLD: [u8; 256] = lower_table(true);

/// Return whether these bytes are a token.
pub fn is_token(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|byte| TOKEN[*byte as usize])
}

/// Return the spelling of a name that all its aliases share.
pub fn fold(name: &[u8]) -> Vec<u8> {
    name.iter().map(|byte| FOLD[*byte as usize]).collect()
}

/// Return whether `name` folds to `folded`, which is in folded form.
pub fn folds_to(name: &[u8], folded: &[u8]) -> bool {
    name.len() == folded.len() && name.iter().zip(folded).all(|(byte, other)| FOLD[*byte as usize] == *other)
}

/// Return whether `name` begins with `prefix` when folded; `prefix` is in folded form.
pub fn folds_to_start(name: &[u8], prefix: &[u8]) -> bool {
    name.len() >= prefix.len() && folds_to(&name[..prefix.len()], prefix)
}

/// The names that the engine treats, by folded form.
const NAMES: [(&[u8], Kind, Known); 19] = [
    (b"host", Kind::Host, Known::Other),
    (b"content-length", Kind::ContentLength, Known::Framing),
    (b"transfer-encoding", Kind::TransferEncoding, Known::Framing),
    (b"connection", Kind::Connection, Known::Hop),
    (b"upgrade", Kind::Upgrade, Known::Hop),
    (b"expect", Kind::Expect, Known::Other),
    (b"te", Kind::Te, Known::Hop),
    (b"trailer", Kind::Trailer, Known::Hop),
    (b"keep-alive", Kind::KeepAlive, Known::Hop),
    (b"http2-settings", Kind::HopByHop, Known::Hop),
    (b"proxy-authenticate", Kind::HopByHop, Known::Hop),
    (b"proxy-authorization", Kind::HopByHop, Known::Hop),
    (b"proxy-connection", Kind::HopByHop, Known::Hop),
    (b"via", Kind::Via, Known::Other),
    (b"cookie", Kind::Cookie, Known::Other),
    (b"set-cookie", Kind::SetCookie, Known::Other),
    (b"location", Kind::Location, Known::Other),
    (b"forwarded", Kind::Forwarding, Known::Other),
    (b"x-real-ip", Kind::Forwarding, Known::Other),
];

/// Names that fold to this start belong to the core.
pub const RESERVED: &[u8] = b"x-netbird-";
/// Names that fold to this start tell an upstream about the client.
pub const FORWARDED: &[u8] = b"x-forwarded-";

/// Return the kind of a name in lower case.
pub fn classify(name: &[u8]) -> Kind {
    let Some(first) = name.first() else { return Kind::Ordinary };
    match FOLD[*first as usize] {
        b'x' => {
            if folds_to_start(name, RESERVED) {
                return Kind::Reserved;
            }
            if folds_to_start(name, FORWARDED) || folds_to(name, b"x-real-ip") {
                return Kind::Forwarding;
            }
            Kind::Ordinary
        }
        b'c' | b'e' | b'f' | b'h' | b'k' | b'l' | b'p' | b's' | b't' | b'u' | b'v' => {
            for (folded, kind, known) in &NAMES {
                if folds_to(name, folded) {
                    return if name == *folded { *kind } else { Kind::Alias(*known) };
                }
            }
            Kind::Ordinary
        }
        _ => Kind::Ordinary,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_name_is_found_under_its_own_spelling() {
        for (name, kind, _) in &NAMES {
            assert_eq!(classify(name), *kind, "{}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn an_alias_is_never_ordinary() {
        assert_eq!(classify(b"content_length"), Kind::Alias(Known::Framing));
        assert_eq!(classify(b"transfer.encoding"), Kind::Alias(Known::Framing));
        assert_eq!(classify(b"proxy_connection"), Kind::Alias(Known::Hop));
        assert_eq!(classify(b"x_netbird.user"), Kind::Reserved);
        assert_eq!(classify(b"x_forwarded.for"), Kind::Forwarding);
        assert_eq!(classify(b"x-real_ip"), Kind::Forwarding);
    }

    #[test]
    fn a_token_has_no_separators() {
        assert!(is_token(b"x-a_b.c"));
        for bad in [&b""[..], b"a b", b"a:", b"a\r", b"\xe4"] {
            assert!(!is_token(bad));
        }
    }

    #[test]
    fn pushed_names_are_in_lower_case() {
        let mut fields = Fields::default();
        fields.push(b"Content-Length", b"5");
        fields.push(b"X_NetBird-User", b"a");
        let lines: Vec<_> = fields.iter().collect();
        assert_eq!(lines[0], (&b"content-length"[..], &b"5"[..], Kind::ContentLength));
        assert_eq!(lines[1], (&b"x_netbird-user"[..], &b"a"[..], Kind::Reserved));
    }
}

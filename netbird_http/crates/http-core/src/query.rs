//! The query of a request without the proxy's own parameter.

use std::borrow::Cow;

const SESSION_PARAMETER: &[u8] = b"session_token";

/// Return a query without `session_token`, in any percent-encoding; the other bytes are unchanged.
pub fn without_session_token(query: &[u8]) -> Cow<'_, [u8]> {
    let ours = |part: &[u8]| is_session_parameter(part.split(|byte| *byte == b'=').next().unwrap_or_default());
    if !query.split(|byte| *byte == b'&').any(ours) {
        return Cow::Borrowed(query);
    }
    let parts: Vec<&[u8]> = query.split(|byte| *byte == b'&').filter(|part| !ours(part)).collect();
    Cow::Owned(parts.join(&b'&'))
}

fn is_session_parameter(name: &[u8]) -> bool {
    let mut rest = name;
    for expected in SESSION_PARAMETER {
        let Some((byte, after)) = decoded(rest) else { return false };
        if byte != *expected {
            return false;
        }
        rest = after;
    }
    rest.is_empty()
}

/// Return bytes with every whole escape decoded; other bytes are unchanged.
pub fn percent_decoded(bytes: &[u8]) -> Cow<'_, [u8]> {
    if !bytes.contains(&b'%') {
        return Cow::Borrowed(bytes);
    }
    let mut plain = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((byte, after)) = decoded(rest) {
        plain.push(byte);
        rest = after;
    }
    Cow::Owned(plain)
}

/// Return the first byte, percent-decoded where it is a whole escape, and the bytes behind it.
fn decoded(bytes: &[u8]) -> Option<(u8, &[u8])> {
    match bytes {
        [b'%', high, low, rest @ ..] => match (digit(*high), digit(*low)) {
            (Some(high), Some(low)) => Some((high << 4 | low, rest)),
            _ => Some((b'%', &bytes[1..])),
        },
        [byte, rest @ ..] => Some((*byte, rest)),
        [] => None,
    }
}

fn digit(byte: u8) -> Option<u8> {
    (byte as char).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_escapes_are_decoded() {
        assert_eq!(&*percent_decoded(b"/caf%C3%a9%2F%2"), b"/caf\xc3\xa9/%2");
        assert_eq!(&*percent_decoded(b"%%41%"), b"%A%");
    }

    #[test]
    fn only_our_parameter_is_cut_out_under_any_encoding() {
        for (query, rest) in [
            (&b"a=1&b=2"[..], &b"a=1&b=2"[..]),
            (b"session_token=x", b""),
            (b"a=%20&sess%69on%5Ftoken=x&b", b"a=%20&b"),
            (b"session_tokens=x&xsession_token=y", b"session_tokens=x&xsession_token=y"),
            (b"%&%7&session_token", b"%&%7"),
        ] {
            assert_eq!(&*without_session_token(query), rest);
        }
    }
}

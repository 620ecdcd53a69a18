//! Hosts with ports: their grammar, and their equality under different spellings.

use std::net::Ipv6Addr;

/// A name of 255 bytes, a colon and the longest port.
const LONGEST: usize = 261;

/// Return whether the bytes are `host` or `host:port`: a name, an IPv4 address or a bracketed IPv6 address.
///
/// There is no user part, and a port is from 1 to 65535.
pub fn is_authority(value: &[u8]) -> bool {
    split(value).is_some()
}

/// Return whether two valid authorities are equal, apart from case, a trailing dot and the scheme's default port.
pub fn same_authority(https: bool, authority: &[u8], other: &[u8]) -> bool {
    authority == other
        || matches!((split(authority), split(other)), (Some(this), Some(that)) if same(https, this, that))
}

fn same(https: bool, (host, port): (&[u8], &[u8]), (other, other_port): (&[u8], &[u8])) -> bool {
    let bare = |host: &'_ [u8]| host.strip_suffix(b".").unwrap_or(host).to_ascii_lowercase();
    let number = |port: &[u8]| match port {
        b"" if https => 443,
        b"" => 80,
        digits => digits.iter().fold(0, |number, digit| number * 10 + u32::from(digit - b'0')),
    };
    bare(host) == bare(other) && number(port) == number(other_port)
}

/// Return host and port, which may be empty.
fn split(value: &[u8]) -> Option<(&[u8], &[u8])> {
    if value.len() > LONGEST {
        return None;
    }
    let end = match value.first()? {
        b'[' => value.iter().position(|byte| *byte == b']')? + 1,
        _ => value.iter().position(|byte| *byte == b':').unwrap_or(value.len()),
    };
    let (host, rest) = value.split_at_checked(end)?;
    let valid = match host {
        [b'[', literal @ .., b']'] => is_v6(literal),
        name => is_name(name),
    };
    let port = match rest {
        [] => rest,
        [b':', digits @ ..] if is_port(digits) => digits,
        _ => return None,
    };
    valid.then_some((host, port))
}

fn is_v6(literal: &[u8]) -> bool {
    // A scope (`%eth0`) is no part of an authority.
    let plain = literal.iter().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.'));
    plain && std::str::from_utf8(literal).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok())
}

fn is_name(name: &[u8]) -> bool {
    let name = name.strip_suffix(b".").unwrap_or(name);
    name.split(|byte| *byte == b'.').all(|label| {
        let follows = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        label.first().is_some_and(|first| *first != b'-') && label.iter().all(follows)
    })
}

fn is_port(digits: &[u8]) -> bool {
    let number = digits.iter().try_fold(0u32, |number, digit| {
        digit.is_ascii_digit().then(|| number.saturating_mul(10).saturating_add(u32::from(digit - b'0')))
    });
    digits.len() <= 5 && number.is_some_and(|number| (1..=65535).contains(&number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_a_host_with_or_without_a_port() {
        for value in [
            &b"a"[..],
            b"a.example.",
            b"A_b-c.d:80",
            b"127.0.0.1:65535",
            b"[::1]",
            b"[2001:DB8::1]:443",
            b"_x",
            b"a:007",
        ] {
            assert!(is_authority(value), "{}", value.escape_ascii());
        }
        for value in [
            &b""[..],
            b".",
            b"a..b",
            b"-a",
            b"a:",
            b"a:0",
            b"a:65536",
            b"a:000080",
            b"a:1:2",
            b"a:x",
            b"u@a",
            b"a/b",
            b"a b",
            b"[::1",
            b"[::1%25e]",
            b"[1.2.3.4]",
            b"[::1]x",
            b"::1",
            b"caf\xc3\xa9",
            &[b'a'; 262],
        ] {
            assert!(!is_authority(value), "{}", value.escape_ascii());
        }
    }

    #[test]
    fn spellings_of_one_authority_are_equal() {
        assert!(same_authority(false, b"A.Example.:80", b"a.example"));
        assert!(same_authority(true, b"a:0443", b"A"));
        assert!(same_authority(false, b"[::A]", b"[::a]:80"));
        assert!(!same_authority(false, b"a:443", b"a"));
        assert!(!same_authority(false, b"a", b"b"));
        assert!(!same_authority(false, b"[::1]", b"[0::1]"));
    }
}

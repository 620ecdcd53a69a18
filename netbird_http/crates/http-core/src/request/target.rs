//! The target of a request: its forms, and the paths that a reader behind the proxy could take for another path.
//!
//! Beyond RFC 9112 a path is refused for dot segments (encoded, with `;parameters`, or between encoded separators), NUL,
//! overlong UTF-8, invalid escapes, and the raw bytes `\`, `"`, `<`, `>` and backtick, which browsers encode. `|`, `^`,
//! `{`, `}`, `[`, `]` and bytes from 0x80 are not allowed in RFC 3986's path either, but clients send them and no reader
//! misreads them. `//` at the start is a path, never an authority. Encoded separators pass: routing judges them, because
//! some services need them. In a query only bytes that a request line cannot carry, and `#`, are refused.

use std::ops::Range;

use memchr::memchr2;

use super::authority::{is_authority, same_authority};
use super::Refusal;

/// The parts of a target, as positions in it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Target {
    /// `None`: the target is in absolute form and has no path, which means `/`.
    pub path: Option<Range<usize>>,
    /// `Some` of nothing where the target ends with `?`.
    pub query: Option<Range<usize>>,
}

/// Return whether a target has bytes and a form that a request line may have at all; `judge` decides the rest.
pub fn is_well_formed(target: &[u8]) -> bool {
    let scheme = target.iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
    let absolute = scheme > 0 && target.get(scheme..).is_some_and(|rest| rest.starts_with(b"://"));
    target.iter().all(|byte| *byte > b' ' && *byte != 0x7f) && (absolute || target == b"*" || target.starts_with(b"/"))
}

/// Return the parts of a target.
///
/// Refused: CONNECT, which requests a tunnel, and TRACE, with which an upstream returns the head that it got: custom
/// headers of the operator, which may be credentials, and the caller's identity. A target is in origin form, `*` with
/// OPTIONS, or absolute with the authority of `host`, which is valid.
pub fn judge(method: &[u8], target: &[u8], host: &[u8]) -> Result<Target, Refusal> {
    match method {
        b"CONNECT" => return Err(Refusal::bad("method_connect")),
        b"TRACE" => return Err(Refusal::bad("method_trace")),
        _ => {}
    }
    if target == b"*" && method == b"OPTIONS" {
        return Ok(Target { path: Some(0..1), query: None });
    }
    let (at, origin) = if target.starts_with(b"/") { (0, target) } else { behind_authority(target, host)? };
    let end = memchr2(b'?', b'#', origin).unwrap_or(origin.len());
    let (path, rest) = origin.split_at_checked(end).unwrap_or((origin, b""));
    let query = rest.get(1..).filter(|_| rest.starts_with(b"?"));
    if origin.contains(&b'#') {
        return Err(Refusal::bad("target_fragment"));
    }
    if !path.iter().all(|byte| in_path(*byte)) || query.is_some_and(|query| !query.iter().all(|byte| in_query(*byte))) {
        return Err(Refusal::bad("target_bytes"));
    }
    judge_path(path)?;
    Ok(Target {
        path: (!path.is_empty()).then_some(at..at + end),
        query: query.map(|query| at + end + 1..at + end + 1 + query.len()),
    })
}

/// Return position and bytes of what follows the authority of an absolute target.
fn behind_authority<'a>(target: &'a [u8], host: &[u8]) -> Result<(usize, &'a [u8]), Refusal> {
    let scheme = [&b"http://"[..], b"https://"]
        .into_iter()
        .find(|scheme| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)));
    let Some(scheme) = scheme else {
        return Err(Refusal::bad(if target.contains(&b'#') { "target_fragment" } else { "target_form" }));
    };
    let rest = target.get(scheme.len()..).unwrap_or_default();
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    let (authority, origin) = rest.split_at_checked(end).unwrap_or((rest, b""));
    if !is_authority(authority) {
        return Err(Refusal::bad("authority_invalid"));
    }
    if !same_authority(scheme.len() == b"https://".len(), authority, host) {
        return Err(Refusal::bad("authority_mismatch"));
    }
    Ok((scheme.len() + end, origin))
}

fn in_path(byte: u8) -> bool {
    matches!(byte, b'!' | b'$'..=b';' | b'=' | b'@'..=b'[' | b']'..=b'_' | b'a'..=b'~' | 0x80..)
}

fn in_query(byte: u8) -> bool {
    matches!(byte, b'!' | b'"' | b'$'..=b'~' | 0x80..)
}

/// Refuse a path that a reader between the proxy and the upstream's file system could take for another path.
fn judge_path(path: &[u8]) -> Result<(), Refusal> {
    if !path.iter().any(|byte| matches!(byte, b'%' | b'.' | 0x80..)) {
        return Ok(());
    }
    // The path as a reader sees it that decodes what matters here; other escapes stay a byte that means nothing.
    let mut plain = Vec::with_capacity(path.len());
    let (mut nul, mut overlong, mut lead) = (false, false, false);
    let mut rest = path;
    while let Some((first, behind)) = rest.split_first() {
        let mut byte = *first;
        rest = behind;
        if byte == b'%' {
            let [high, low, behind @ ..] = behind else { return Err(Refusal::bad("path_escape")) };
            let (Some(high), Some(low)) = (digit(*high), digit(*low)) else {
                return Err(Refusal::bad("path_escape"));
            };
            rest = behind;
            byte = high << 4 | low;
            plain.push(match byte {
                b'/' | b'\\' => b'/',
                b'.' | b';' => byte,
                _ => b'%',
            });
        } else {
            plain.push(byte);
        }
        nul |= byte == 0;
        // Such a pair spells an ASCII character in two bytes, whether they are encoded or not.
        overlong |= lead && matches!(byte, 0x80..=0xbf);
        lead = matches!(byte, 0xc0 | 0xc1);
    }
    if nul {
        return Err(Refusal::bad("path_nul"));
    }
    if overlong {
        return Err(Refusal::bad("path_overlong"));
    }
    // `/..;x/` is `/../` to servlet containers.
    let mut names = plain.split(|byte| *byte == b'/').map(|segment| segment.split(|byte| *byte == b';').next());
    if names.any(|name| matches!(name, Some(b"." | b".."))) {
        return Err(Refusal::bad("path_dots"));
    }
    Ok(())
}

fn digit(byte: u8) -> Option<u8> {
    (byte as char).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts<'a>(method: &[u8], target: &'a [u8]) -> Result<(&'a [u8], Option<&'a [u8]>), &'static str> {
        let parts = judge(method, target, b"a.example").map_err(|refusal| refusal.reason)?;
        Ok((parts.path.map_or(&b"/"[..], |path| &target[path]), parts.query.map(|query| &target[query])))
    }

    #[test]
    fn a_target_has_a_path_and_may_have_a_query() {
        for (target, path, query) in [
            (&b"/"[..], &b"/"[..], None),
            (b"/a/b?c=d?e", b"/a/b", Some(&b"c=d?e"[..])),
            (b"/posts/1?", b"/posts/1", Some(b"")),
            (b"//a/b", b"//a/b", None),
            (b"/caf\xc3\xa9?\xe9", b"/caf\xc3\xa9", Some(b"\xe9")),
            (b"/a%2Fb|^{}[]", b"/a%2Fb|^{}[]", None),
            (b"/.../.a/a../b.", b"/.../.a/a../b.", None),
            (b"http://a.example", b"/", None),
            (b"HTTP://A.example.:80/x?y", b"/x", Some(b"y")),
            (b"https://a.example:443?y", b"/", Some(b"y")),
        ] {
            assert_eq!(parts(b"GET", target), Ok((path, query)), "{}", target.escape_ascii());
        }
        assert_eq!(parts(b"OPTIONS", b"*"), Ok((&b"*"[..], None)));
    }

    #[test]
    fn a_path_that_could_be_another_is_refused() {
        for (target, reason) in [
            (&b"/.."[..], "path_dots"),
            (b"/a/./b", "path_dots"),
            (b"/%2e%2E/a", "path_dots"),
            (b"/a%2f..%5cb", "path_dots"),
            (b"/..;x=1/a", "path_dots"),
            (b"/.%3bx", "path_dots"),
            (b"/%", "path_escape"),
            (b"/%2", "path_escape"),
            (b"/%zz", "path_escape"),
            (b"/a%00", "path_nul"),
            (b"/%c0%ae", "path_overlong"),
            (b"/%C1\xbf", "path_overlong"),
            (b"/\xc0\xae", "path_overlong"),
            (b"/a\\b", "target_bytes"),
            (b"/`a`", "target_bytes"),
            (b"/a?\x01", "target_bytes"),
            (b"/a#b", "target_fragment"),
            (b"/a?b#c", "target_fragment"),
            (b"ftp://a.example/", "target_form"),
            (b"*", "target_form"),
            (b"", "target_form"),
            (b"http://a b/", "authority_invalid"),
            (b"http:///x", "authority_invalid"),
            (b"http://b.example/", "authority_mismatch"),
            (b"http://a.example/../b", "path_dots"),
        ] {
            assert_eq!(parts(b"GET", target), Err(reason), "{}", target.escape_ascii());
        }
    }

    #[test]
    fn no_method_opens_a_tunnel_or_returns_the_head() {
        for target in [&b"/"[..], b"*", b"a.example:443", b"http://a.example/"] {
            assert_eq!(parts(b"CONNECT", target), Err("method_connect"));
            assert_eq!(parts(b"TRACE", target), Err("method_trace"));
        }
    }

    #[test]
    fn a_request_line_carries_visible_bytes_in_a_known_form() {
        for target in [&b"/"[..], b"/\xff", b"*", b"http://", b"ftp://a"] {
            assert!(is_well_formed(target), "{}", target.escape_ascii());
        }
        for target in [&b""[..], b"a/b", b"a.example:443", b"/\x01", b"/\x7f", b"/a\tb", b"*a", b"?", b"://"] {
            assert!(!is_well_formed(target), "{}", target.escape_ascii());
        }
    }
}

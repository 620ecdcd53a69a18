//! The fields of a request that decide its host, the end of its body, and the future of its connection.
//!
//! A head in which two readers could see two hosts or two bodies is refused: a repeated field, a length in any but its
//! plain form, a coding other than `chunked`, a name that CGI-style upstreams fold to a framing field. Blanks around a
//! value are no part of it (RFC 9110 §5.5), and codings have no case.

use super::authority::is_authority;
use super::Refusal;
use crate::cookies::trim;
use crate::fields::{Kind, Known};
use crate::outgoing::may_be_asked_for;
use crate::section::parts;

/// Digits of the longest length that is accepted: with more, readers compute different ones.
const LENGTH_DIGITS: usize = 18;

/// The end of a request's body.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Body {
    /// Behind so many bytes; 0 without a body.
    Octets(u64),
    Chunked,
}

/// The facts that the fields state.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Framing<'a> {
    pub host: &'a [u8],
    pub body: Body,
    /// The client waits for `100 Continue`.
    pub expects: bool,
    /// Another request may follow on the connection.
    pub keep_alive: bool,
    /// An upgrade is asked for that an upstream may grant: what follows the head is the other protocol's.
    pub upgrade: bool,
}

/// Judge the fields of a head. `modern`: of HTTP/1.1; else of HTTP/1.0.
pub fn judge<'a>(
    fields: impl Iterator<Item = (&'a [u8], &'a [u8], Kind)>,
    modern: bool,
) -> Result<Framing<'a>, Refusal> {
    let (mut host, mut length, mut coding) = (None, None, None);
    let (mut expected, mut close, mut keep, mut listed, mut followed) = (false, false, false, false, false);
    for (name, value, kind) in fields {
        let value = trim(value);
        match kind {
            Kind::Host => once(&mut host, value, "host_repeated")?,
            Kind::ContentLength => once(&mut length, value, "length_repeated")?,
            Kind::TransferEncoding => once(&mut coding, value, "coding_repeated")?,
            Kind::Expect => {
                if expected || !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Refusal { status: 417, reason: "expectation" });
                }
                expected = true;
            }
            Kind::Alias(Known::Framing) => return Err(Refusal::bad("framing_alias")),
            // Clients of proxies write the second one, and other readers heed it.
            Kind::Connection | Kind::HopByHop if kind == Kind::Connection || name == b"proxy-connection" => {
                for part in parts(value) {
                    close |= part.eq_ignore_ascii_case(b"close");
                    keep |= part.eq_ignore_ascii_case(b"keep-alive");
                    listed |= part.eq_ignore_ascii_case(b"upgrade");
                }
            }
            Kind::Upgrade => followed |= parts(value).any(may_be_asked_for),
            _ => {}
        }
    }
    // Also on HTTP/1.0, where RFC 9112 allows its absence: routing needs a host.
    let host = host.ok_or(Refusal::bad("host_missing"))?;
    if !is_authority(host) {
        return Err(Refusal::bad("host_invalid"));
    }
    let body = match (coding, length) {
        (Some(_), Some(_)) => return Err(Refusal::bad("length_and_coding")),
        (Some(coding), None) if modern && coding.eq_ignore_ascii_case(b"chunked") => Body::Chunked,
        (Some(_), None) => return Err(Refusal::bad("coding")),
        (None, Some(length)) => Body::Octets(octets(length).ok_or(Refusal::bad("length"))?),
        (None, None) => Body::Octets(0),
    };
    let has_body = body != Body::Octets(0);
    // An offer that nobody may follow, such as `h2c`, is ignored (RFC 9110 §7.8).
    let upgrade = listed && followed;
    if upgrade && has_body {
        return Err(Refusal::bad("upgrade_body"));
    }
    Ok(Framing {
        host,
        body,
        expects: expected && modern && has_body,
        keep_alive: (if modern { !close } else { keep }) && !upgrade,
        upgrade: upgrade && modern, // ignored on HTTP/1.0
    })
}

fn once<'a>(place: &mut Option<&'a [u8]>, value: &'a [u8], reason: &'static str) -> Result<(), Refusal> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Refusal::bad(reason)),
    }
}

/// Return a length in its plain form: digits, without zeros in front.
fn octets(value: &[u8]) -> Option<u64> {
    let plain = value == b"0" || value.first().is_some_and(|first| *first != b'0');
    if !plain || value.len() > LENGTH_DIGITS || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(value.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

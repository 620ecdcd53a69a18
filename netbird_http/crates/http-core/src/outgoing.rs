//! The request head for an upstream: one pass over the client's fields, then plugins' changes, then the bytes.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use memchr::memchr3;

use crate::cookies::{trim, Cookies, CORE};
use crate::fields::{classify, fold, is_token, Kind, Known, RESERVED};
use crate::query::without_session_token;

/// A name and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// The reason why a head cannot be sent. The message is for the log; it contains no value of a field.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Unsendable(pub &'static str);

const BAD_LENGTH: Unsendable = Unsendable("the request has more than one Content-Length, or one that is not a number");
const TWO_FRAMINGS: Unsendable = Unsendable("the request has both Content-Length and Transfer-Encoding");
const LINE_BREAK: Unsendable = Unsendable("a field of the request holds a line break or NUL");

/// The fields by which the core itself tells an upstream about the client.
const REPORTED: [&[u8]; 5] =
    [b"x-forwarded-for", b"x-real-ip", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-port"];

/// The facts about a request beside its fields.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub method: &'a [u8],
    pub raw_path: &'a [u8],
    pub query: &'a [u8],
    /// The target ends with a `?`, with nothing behind it.
    pub empty_query: bool,
    pub authority: &'a [u8],
    /// `http` or `https`.
    pub scheme: &'a [u8],
    /// The address of the connection's peer; empty if it is unknown.
    pub address: &'a [u8],
    /// The client asks for an upgrade, and the listener can carry one.
    pub upgrades: bool,
    /// A server for HTTP/1 framed the body in the head.
    pub framed_in_head: bool,
    /// The listener's knowledge of a body; `None` under another server, where only the head shows it.
    pub carried_body: Option<bool>,
}

/// The rules for one upstream of one route, compiled when its mapping is applied.
#[derive(Clone, Debug)]
pub struct OutgoingRules {
    path: Vec<u8>,
    base: Vec<u8>,
    query: Vec<u8>,
    cut: usize,
    host: Option<Vec<u8>>,
    owners: HashMap<Vec<u8>, String>,
    custom: Vec<Pair>,
    custom_names: HashSet<Vec<u8>>,
    cookies: Cookies,
    reported: [bool; REPORTED.len()],
    via: Vec<u8>,
}

/// The form in which a route's requests reach one upstream.
#[derive(Clone, Debug, Default)]
pub struct Destination {
    /// The upstream's path, which begins with `/`, and the query that its target has.
    pub path: Vec<u8>,
    pub query: Vec<u8>,
    /// Bytes of the matched prefix that are cut from the path.
    pub cut: usize,
    /// The `Host` field; `None` for the client's own.
    pub host: Option<Vec<u8>>,
}

/// The head of one request while plugins may change it.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    pub method: Vec<u8>,
    pub target: Vec<u8>,
    pub host: Vec<u8>,
    pub fields: Vec<Pair>,
    pub upgrade: Vec<Vec<u8>>,
    length: Option<Vec<u8>>,
    encoded: bool,
    framed_in_head: bool,
    carried_body: Option<bool>,
}

/// A head as it is sent, and the framing of its body.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Written {
    pub head: Vec<u8>,
    pub has_body: bool,
    pub chunked: bool,
}

/// The name belongs to the core or to another plugin on this route.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NotTheOwner(pub String);

enum Treatment {
    Keep,
    Drop,
    Cookie,
    Connection,
    Length,
    Coding,
    Upgrade,
    Te,
}

impl OutgoingRules {
    /// Compile the rules. Custom headers without those that the core or a plugin owns; names were checked before.
    pub fn new(
        destination: Destination,
        owners: HashMap<Vec<u8>, String>,
        cookies: Cookies,
        custom: Vec<Pair>,
        pseudonym: &[u8],
    ) -> OutgoingRules {
        let mut reported = [true; REPORTED.len()];
        for (at, name) in REPORTED.iter().enumerate() {
            reported[at] = !owners.contains_key(*name);
        }
        let mut rules = OutgoingRules {
            base: destination.path.strip_suffix(b"/").unwrap_or(&destination.path).to_vec(),
            path: destination.path,
            query: destination.query,
            cut: destination.cut,
            host: destination.host,
            owners,
            custom: Vec::new(),
            custom_names: HashSet::new(),
            cookies,
            reported,
            via: [b"1.1 ", pseudonym].concat(),
        };
        let custom: Vec<Pair> = custom.into_iter().filter(|(name, _)| rules.owner(name).is_none()).collect();
        rules.custom_names = custom.iter().map(|(name, _)| fold(name)).collect();
        rules.custom = custom.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
        rules
    }

    /// Return who may set a name: a plugin, `core`, an empty text for a reserved name without an owner, or nobody.
    pub fn owner(&self, name: &[u8]) -> Option<&str> {
        let folded = fold(name);
        if folded == b"via" {
            return Some(CORE);
        }
        if let Some(owner) = self.owners.get(&folded) {
            return Some(owner);
        }
        if folded.starts_with(RESERVED) {
            return Some("");
        }
        match classify(&folded) {
            Kind::Host | Kind::Expect => Some(CORE),
            kind if ends_here(kind) => Some(CORE),
            // The known names only: plugins may set others, such as `x-forwarded-user`.
            Kind::Forwarding if is_forwarded_name(&folded) => Some(CORE),
            _ => None,
        }
    }

    /// Return why `plugin` may not set a name, or nothing.
    pub fn refusal(&self, name: &[u8], plugin: &str) -> Option<NotTheOwner> {
        let owner = self.owner(name)?;
        let nobody = |id: &str| if id.is_empty() { "nobody".to_string() } else { id.to_string() };
        let shown: String = name.iter().map(|byte| *byte as char).collect();
        if owner.is_empty() {
            Some(NotTheOwner(format!("{shown} is reserved and {} does not own it", nobody(plugin))))
        } else if owner != plugin {
            Some(NotTheOwner(format!("{shown} is owned by {owner}, not by {}", nobody(plugin))))
        } else {
            None
        }
    }

    fn treatment(&self, name: &[u8]) -> Treatment {
        match classify(name) {
            Kind::Ordinary | Kind::Via | Kind::SetCookie | Kind::Location => self.unless_custom(name, Treatment::Keep),
            Kind::Cookie => self.unless_custom(name, Treatment::Cookie),
            Kind::Connection => Treatment::Connection,
            Kind::ContentLength => Treatment::Length,
            Kind::TransferEncoding => Treatment::Coding,
            Kind::Upgrade => Treatment::Upgrade,
            Kind::Te => Treatment::Te,
            Kind::Host | Kind::Expect | Kind::Trailer | Kind::KeepAlive | Kind::HopByHop | Kind::Reserved => {
                Treatment::Drop
            }
            Kind::Alias(Known::Framing | Known::Hop) => Treatment::Drop,
            Kind::Alias(Known::Other) => self.unless_custom(name, Treatment::Keep),
            Kind::Forwarding if self.owners.contains_key(&fold(name)) => self.unless_custom(name, Treatment::Keep),
            Kind::Forwarding => Treatment::Drop,
        }
    }

    fn unless_custom(&self, name: &[u8], treatment: Treatment) -> Treatment {
        if !self.custom_names.is_empty() && self.custom_names.contains(&fold(name)) {
            Treatment::Drop
        } else {
            treatment
        }
    }

    /// Read the client's fields, and add those of the core.
    pub fn begin<'a>(
        &self,
        request: &Request<'_>,
        raw: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<Draft, Unsendable> {
        let mut fields: Vec<Pair> = Vec::with_capacity(raw.size_hint().0 + 8);
        let mut length: Option<&[u8]> = None;
        let mut listed: HashSet<Vec<u8>> = HashSet::new();
        let mut asked: Vec<&[u8]> = Vec::new();
        let (mut encoded, mut trailers_wanted) = (false, false);
        for (name, value) in raw {
            match self.treatment(name) {
                Treatment::Keep => fields.push((name.to_vec(), value.to_vec())),
                Treatment::Drop => {}
                Treatment::Cookie => {
                    let kept = self.cookies.kept(value, "");
                    if !kept.is_empty() {
                        fields.push((name.to_vec(), kept.into_owned()));
                    }
                }
                Treatment::Connection => {
                    if !is_quiet(value) {
                        listed.extend(value.split(|byte| *byte == b',').map(|part| fold(trim(part))));
                    }
                }
                Treatment::Length => {
                    if length.is_some() || value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
                        return Err(BAD_LENGTH);
                    }
                    length = Some(value);
                }
                Treatment::Coding => encoded = true,
                Treatment::Upgrade => asked.push(value),
                Treatment::Te => trailers_wanted |= contains_ignoring_case(value, b"trailers"),
            }
        }
        if !listed.is_empty() {
            fields.retain(|(name, _)| !listed.contains(&fold(name)));
        }
        let mut upgrade = Vec::new();
        let foreign = request.carried_body.is_none() && listed.contains(&b"upgrade"[..]);
        if request.upgrades || (!asked.is_empty() && foreign) {
            upgrade = upgrade_protocols(&asked);
        }
        if !upgrade.is_empty() {
            fields.push((b"connection".to_vec(), b"Upgrade".to_vec()));
            fields.push((b"upgrade".to_vec(), upgrade.join(&b", "[..])));
        } else if trailers_wanted {
            fields.push((b"te".to_vec(), b"trailers".to_vec()));
            fields.push((b"connection".to_vec(), b"TE".to_vec()));
        }
        self.report(request, &mut fields);
        fields.extend(self.custom.iter().cloned());
        fields.push((b"via".to_vec(), self.via.clone()));
        Ok(Draft {
            method: request.method.to_vec(),
            target: self.target(request.raw_path, request.query, request.empty_query),
            host: self.host.as_deref().unwrap_or(request.authority).to_vec(),
            fields,
            upgrade,
            length: length.map(<[u8]>::to_vec),
            encoded,
            framed_in_head: request.framed_in_head,
            carried_body: request.carried_body,
        })
    }

    fn report(&self, request: &Request<'_>, fields: &mut Vec<Pair>) {
        let colon = request.authority.iter().rposition(|byte| *byte == b':');
        let port = colon.map_or(&b""[..], |at| &request.authority[at + 1..]);
        let port = if !port.is_empty() && port.iter().all(u8::is_ascii_digit) {
            port
        } else if request.scheme == b"https" {
            &b"443"[..]
        } else {
            &b"80"[..]
        };
        let values = [request.address, request.address, request.authority, request.scheme, port];
        for (at, value) in values.into_iter().enumerate() {
            if self.reported[at] && (at > 1 || !value.is_empty()) {
                fields.push((REPORTED[at].to_vec(), value.to_vec()));
            }
        }
    }

    /// Return the target: the upstream's path, then the bytes after the matched prefix, unchanged.
    ///
    /// A request for exactly the prefix gets exactly the upstream's path: `/hook` and `/hook/` may differ there.
    pub fn target(&self, raw_path: &[u8], query: &[u8], empty_query: bool) -> Vec<u8> {
        let rest = raw_path.get(self.cut..).unwrap_or_default();
        let mut target = if rest.is_empty() { self.path.clone() } else { [&self.base[..], rest].concat() };
        let query: Cow<'_, [u8]> = without_session_token(query);
        for (at, part) in [&self.query[..], &query[..]].into_iter().filter(|part| !part.is_empty()).enumerate() {
            target.push(if at == 0 { b'?' } else { b'&' });
            target.extend_from_slice(part);
        }
        if empty_query && self.query.is_empty() {
            target.push(b'?');
        }
        target
    }
}

impl Draft {
    /// Return a head without rules of its own, for what is tested without a route.
    pub fn bare(method: Vec<u8>, target: Vec<u8>, fields: Vec<Pair>) -> Draft {
        Draft { method, target, fields, ..Draft::default() }
    }

    /// Decide the framing of the body, and write the head.
    pub fn written(&self) -> Result<Written, Unsendable> {
        let (has_body, chunked) = self.framing()?;
        let size = self.fields.iter().map(|(name, value)| name.len() + value.len() + 4).sum::<usize>();
        let mut head = Vec::with_capacity(size + self.target.len() + self.host.len() + 64);
        for part in [&self.method[..], b" ", &self.target, b" HTTP/1.1"] {
            push(&mut head, part)?;
        }
        line(&mut head, b"host", &self.host)?;
        for (name, value) in &self.fields {
            line(&mut head, name, value)?;
        }
        match &self.length {
            _ if chunked => line(&mut head, b"transfer-encoding", b"chunked")?,
            Some(length) => line(&mut head, b"content-length", length)?,
            None => {}
        }
        head.extend_from_slice(b"\r\n\r\n");
        Ok(Written { head, has_body, chunked })
    }

    fn framing(&self) -> Result<(bool, bool), Unsendable> {
        if self.encoded {
            return if self.length.is_some() { Err(TWO_FRAMINGS) } else { Ok((true, true)) };
        }
        if let Some(length) = &self.length {
            return Ok((length.iter().any(|digit| *digit != b'0'), false));
        }
        let carried = self.carried_body.unwrap_or_else(|| {
            // HTTP/2 and later frame bodies outside the head, so any request but these may have one.
            !self.framed_in_head && !matches!(&self.method[..], b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE")
        });
        Ok((carried, carried))
    }

    /// Remove every line whose name folds to one of these, which are in folded form.
    pub fn remove(&mut self, folded: &[Vec<u8>]) {
        self.fields.retain(|(name, _)| !folded.iter().any(|other| crate::fields::folds_to(name, other)));
    }

    /// Append a line that can be carried. The name is sent in lower case.
    pub fn append(&mut self, name: &[u8], value: &[u8]) {
        self.fields.push((name.to_ascii_lowercase(), value.to_vec()));
    }
}

/// Return whether a field can carry this name and value.
pub fn can_carry(name: &[u8], value: &[u8]) -> bool {
    is_token(name) && memchr3(b'\r', b'\n', 0, value).is_none()
}

fn push(head: &mut Vec<u8>, part: &[u8]) -> Result<(), Unsendable> {
    if memchr3(b'\r', b'\n', 0, part).is_some() {
        return Err(LINE_BREAK);
    }
    head.extend_from_slice(part);
    Ok(())
}

fn line(head: &mut Vec<u8>, name: &[u8], value: &[u8]) -> Result<(), Unsendable> {
    head.extend_from_slice(b"\r\n");
    push(head, name)?;
    head.extend_from_slice(b": ");
    push(head, value)
}

/// Return whether a name frames a message or ends at one hop. `te` is answered by the proxy itself.
fn ends_here(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::ContentLength
            | Kind::TransferEncoding
            | Kind::Connection
            | Kind::Upgrade
            | Kind::Te
            | Kind::Trailer
            | Kind::KeepAlive
            | Kind::HopByHop
    )
}

/// The names of client addresses that belong to the core unless a plugin owns them.
fn is_forwarded_name(folded: &[u8]) -> bool {
    REPORTED.contains(&folded)
        || matches!(
            folded,
            b"forwarded" | b"x-forwarded-prefix" | b"x-forwarded-scheme" | b"x-forwarded-server" | b"x-forwarded-ssl"
        )
}

fn is_quiet(value: &[u8]) -> bool {
    matches!(value, b"keep-alive" | b"close" | b"Keep-Alive" | b"Close")
}

fn contains_ignoring_case(value: &[u8], lower: &[u8]) -> bool {
    value.windows(lower.len()).any(|window| window.eq_ignore_ascii_case(lower))
}

/// Return the protocols of `Upgrade` fields that an upstream may be asked for.
///
/// Protocols that carry further requests, also below TLS, are left out: those requests would pass no guard.
fn upgrade_protocols(values: &[&[u8]]) -> Vec<Vec<u8>> {
    let parts = values.iter().flat_map(|value| value.split(|byte| *byte == b',')).map(trim);
    parts.filter(|part| may_be_asked_for(part)).map(<[u8]>::to_vec).collect()
}

/// Return whether an upstream may be asked for this protocol: a token that names no carrier of further requests.
pub fn may_be_asked_for(protocol: &[u8]) -> bool {
    let mut halves = protocol.splitn(2, |byte| *byte == b'/');
    let name = halves.next().unwrap_or_default();
    let carries = [&b"h2"[..], b"h2c", b"h3", b"http", b"tls"].iter().any(|other| name.eq_ignore_ascii_case(other));
    is_token(name) && halves.next().is_none_or(is_token) && !carries
}

#[cfg(test)]
mod tests;

//! Cookies that stay between the client and the proxy: the session's, and those that plugins declare.

use std::borrow::Cow;
use std::collections::HashMap;

/// Owner of the names that no plugin may set. Not the id of a plugin.
pub const CORE: &str = "core";

const SESSION_COOKIE: &[u8] = b"nb_session";
const HOST_COOKIES: &[u8] = b"__host-nb_";

/// The cookies of a route's plugins, by name or by the start of a name.
#[derive(Clone, Debug, Default)]
pub struct Cookies {
    exact: HashMap<Vec<u8>, String>,
    starts: Vec<(Vec<u8>, String)>,
}

impl Cookies {
    /// Compile pairs of a name, or a start and `*`, and the plugin that sets it.
    pub fn new(declared: impl IntoIterator<Item = (Vec<u8>, String)>) -> Cookies {
        let mut cookies = Cookies::default();
        for (name, owner) in declared {
            if let Some(start) = name.strip_suffix(b"*") {
                cookies.starts.push((start.to_vec(), owner.clone()));
            }
            cookies.exact.insert(name, owner);
        }
        cookies
    }

    /// Return the plugin that declared a cookie, `core` for a reserved one, and nothing for an upstream's.
    pub fn owner(&self, name: &[u8]) -> &str {
        let name = trim(name);
        if let Some(owner) = self.exact.get(name).filter(|owner| !owner.is_empty()) {
            return owner;
        }
        if let Some((_, owner)) = self.starts.iter().find(|(start, _)| name.starts_with(start)) {
            if !owner.is_empty() {
                return owner;
            }
        }
        let is_session = name.eq_ignore_ascii_case(SESSION_COOKIE);
        let is_host = name.get(..HOST_COOKIES.len()).is_some_and(|start| start.eq_ignore_ascii_case(HOST_COOKIES));
        if is_session || is_host {
            CORE
        } else {
            ""
        }
    }

    /// Return a `Cookie` value with the upstream's cookies and those of `plugin`, bytes unchanged. May be empty.
    pub fn kept<'a>(&self, value: &'a [u8], plugin: &str) -> Cow<'a, [u8]> {
        let stays = |part: &[u8]| {
            let owner = self.owner(cookie_part_name(part));
            owner.is_empty() || (owner == plugin && owner != CORE)
        };
        if value.split(|byte| *byte == b';').all(stays) {
            return Cow::Borrowed(value);
        }
        let parts: Vec<&[u8]> = value.split(|byte| *byte == b';').filter(|part| stays(part)).collect();
        Cow::Owned(trim(&parts.join(&b';')).to_vec())
    }
}

/// Return the name under which a browser sends the cookie of a `Set-Cookie` value.
///
/// Older browsers send a cookie without a name as its value alone, so its value counts as its name.
pub fn set_cookie_name(value: &[u8]) -> &[u8] {
    let pair = value.split(|byte| *byte == b';').next().unwrap_or_default();
    let start = pair.iter().position(|byte| !matches!(byte, b'=' | b' ' | b'\t')).unwrap_or(pair.len());
    cookie_part_name(&pair[start..])
}

fn cookie_part_name(part: &[u8]) -> &[u8] {
    part.split(|byte| *byte == b'=').next().unwrap_or_default()
}

/// Return bytes without the blanks (space, tab) around them.
pub fn trim(bytes: &[u8]) -> &[u8] {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = bytes.iter().position(|byte| !blank(byte)).unwrap_or(bytes.len());
    let end = bytes.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    &bytes[start..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cookies() -> Cookies {
        Cookies::new([(b"cart".to_vec(), "shop".to_string()), (b"shop_*".to_vec(), "shop".to_string())])
    }

    #[test]
    fn each_cookie_has_its_owner() {
        let cookies = cookies();
        assert_eq!(cookies.owner(b"cart"), "shop");
        assert_eq!(cookies.owner(b" shop_x "), "shop");
        assert_eq!(cookies.owner(b"NB_session"), CORE);
        assert_eq!(cookies.owner(b"__HOST-nb_state"), CORE);
        assert_eq!(cookies.owner(b"theirs"), "");
    }

    #[test]
    fn our_cookies_are_cut_out_and_the_rest_is_unchanged() {
        let cookies = cookies();
        assert_eq!(&*cookies.kept(b"a=1; b=2", ""), b"a=1; b=2");
        assert_eq!(&*cookies.kept(b"nb_session=x", ""), b"");
        assert_eq!(&*cookies.kept(b"a=1; nb_session=x; cart=7; b=2", ""), b"a=1; b=2");
        assert_eq!(&*cookies.kept(b"a=1; cart=7", "shop"), b"a=1; cart=7");
        assert_eq!(&*cookies.kept(b"nb_session=x; cart=7", CORE), b"");
    }

    #[test]
    fn a_cookie_without_a_name_counts_by_its_value() {
        assert_eq!(set_cookie_name(b"=nb_session; Path=/"), b"nb_session");
        assert_eq!(set_cookie_name(b" = =a=1"), b"a");
        assert_eq!(set_cookie_name(b""), b"");
    }
}

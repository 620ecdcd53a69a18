//! Datagrams on the socket that are not WireGuard's but STUN's, kept for whoever negotiates paths.

use std::net::SocketAddr;

/// Maximum number of datagrams kept between two calls of `take`, of all sources and of one address.
const MOST: usize = 64;
const MOST_OF_SOURCE: usize = 16;
/// Maximum length of a kept datagram.
const LONGEST: usize = 2048;
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
/// Lengths of the shortest messages of either protocol.
const STUN_HEADER: usize = 20;
const SHORTEST_WIREGUARD: usize = 32;

#[derive(Default)]
pub struct Strays {
    waiting: Vec<(Vec<u8>, SocketAddr)>,
}

impl Strays {
    /// False if the datagram was dropped, because too many wait or it is too long.
    pub fn push(&mut self, datagram: &[u8], from: SocketAddr) -> bool {
        let of_source = self.waiting.iter().filter(|(_, other)| other.ip() == from.ip()).count();
        if self.waiting.len() >= MOST || of_source >= MOST_OF_SOURCE || datagram.len() > LONGEST {
            return false;
        }
        self.waiting.push((datagram.to_vec(), from));
        true
    }

    pub fn take(&mut self) -> Vec<(Vec<u8>, SocketAddr)> {
        std::mem::take(&mut self.waiting)
    }
}

/// True for a datagram that cannot be WireGuard's and has STUN's magic cookie.
pub fn is_stun(datagram: &[u8]) -> bool {
    let Some(header) = datagram.get(..STUN_HEADER) else { return false };
    let wireguard = datagram.len() >= SHORTEST_WIREGUARD && matches!(header[0], 1..=4) && header[1..4] == [0, 0, 0];
    !wireguard && header[0] & 0xc0 == 0 && header[4..8] == MAGIC_COOKIE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding_request() -> Vec<u8> {
        let mut datagram = vec![0x00, 0x01, 0x00, 0x00, 0x21, 0x12, 0xa4, 0x42];
        datagram.extend([7; 12]);
        datagram
    }

    #[test]
    fn stun_is_told_from_wireguard() {
        assert!(is_stun(&binding_request()));
        let mut success = binding_request();
        success[0] = 0x01;
        success.extend([0; 12]);
        assert!(is_stun(&success));
        // The same bytes could be a handshake of WireGuard whose sender chose this index.
        success[1] = 0;
        assert!(!is_stun(&success));
        assert!(!is_stun(&binding_request()[..19]));
        let mut no_cookie = binding_request();
        no_cookie[4] = 0;
        assert!(!is_stun(&no_cookie));
    }

    #[test]
    fn one_source_leaves_room_for_others() {
        let mut strays = Strays::default();
        let flood: SocketAddr = "192.0.2.1:1".parse().unwrap();
        let other: SocketAddr = "192.0.2.2:1".parse().unwrap();
        let kept = (0..100).filter(|_| strays.push(&binding_request(), flood)).count();
        assert_eq!(kept, MOST_OF_SOURCE);
        assert!(strays.push(&binding_request(), other));
        assert_eq!(strays.take().len(), MOST_OF_SOURCE + 1);
        assert!(strays.push(&binding_request(), flood));
        assert!(!strays.push(&[0; 4096], other));
    }
}

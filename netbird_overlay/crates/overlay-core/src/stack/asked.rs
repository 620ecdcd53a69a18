//! The addresses of ours that peers asked at, where they are not the first of their family: a listening port answers from
//! there, because the client takes an answer from nowhere else (RFC 1122 section 4.1.3.5).

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use foldhash::fast::RandomState;

/// Maximum number of remembered clients; beyond it the oldest is forgotten.
const REMEMBERED: usize = 1024;

/// A listening port, and the client's address and port.
type Client = (u16, IpAddr, u16);

#[derive(Default)]
pub(crate) struct Asked {
    /// The first address of each family, IPv4 and IPv6.
    first: [Option<IpAddr>; 2],
    by_client: HashMap<Client, IpAddr, RandomState>,
    order: VecDeque<Client>,
}

impl Asked {
    /// Take our addresses, and forget those that are not ours any more.
    pub fn set_own(&mut self, own: &[IpAddr]) {
        self.first = [true, false].map(|ipv4| own.iter().copied().find(|address| address.is_ipv4() == ipv4));
        self.retain(|_, local| own.contains(local));
    }

    /// Note that a client asked at an address.
    pub fn note(&mut self, client: Client, local: IpAddr) {
        if self.first.contains(&Some(local)) {
            // A client may ask at two addresses: the last one counts.
            if self.by_client.remove(&client).is_some() {
                self.order.retain(|each| *each != client);
            }
            return;
        }
        if self.by_client.insert(client, local).is_some() {
            return;
        }
        self.order.push_back(client);
        if self.order.len() > REMEMBERED {
            if let Some(oldest) = self.order.pop_front() {
                self.by_client.remove(&oldest);
            }
        }
    }

    /// The address at which a client asked; None for the first of its family.
    pub fn local(&self, client: &Client) -> Option<IpAddr> {
        self.by_client.get(client).copied()
    }

    pub fn close(&mut self, port: u16) {
        self.retain(|client, _| client.0 != port);
    }

    pub fn len(&self) -> usize {
        self.by_client.len()
    }

    fn retain(&mut self, keep: impl Fn(&Client, &IpAddr) -> bool) {
        self.by_client.retain(|client, local| keep(client, local));
        self.order.retain(|client| self.by_client.contains_key(client));
    }
}

//! The inner side: TCP connections, and the rules for those that peers open.

pub mod arrivals;
mod asked;
mod buffers;
pub mod conn;
mod datagrams;
pub mod filter;
pub mod flush;
mod guard;
mod half_open;
pub mod inbound;
pub mod link;
pub mod memory;
pub mod tcp;
#[cfg(test)]
mod tests;
mod turns;
pub mod udp;

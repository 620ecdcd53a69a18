//! Bytes and addresses of inner packets.

pub mod datagram;
pub mod packet;
pub mod prefix;

//! The outer side: peers, their sessions, and the admission of handshakes.
//!
//! WireGuard's protocol is boringtun's, with the changes of vendor/boringtun.patch.

pub mod admission;
pub mod indices;
pub mod peer;
pub mod wireguard;

//! The engine of one overlay node: WireGuard and TCP over it. It has no socket, no clock and no thread: bytes and times
//! come in, datagrams and events go out.

#![forbid(unsafe_code)]

pub mod chance;
pub mod counters;
pub mod engine;
pub mod events;
pub mod noise;
pub mod out;
pub mod path;
pub mod shared;
pub mod stack;
pub mod strays;
pub mod time;
pub mod wire;

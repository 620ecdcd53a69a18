//! HTTP/1.1 without I/O: bytes in, verdicts or bytes out. Time and random bytes are arguments; Python compiles the tables.
//!
//! No input makes a function of this crate panic, and none calls Python: the faces in `http-python` do that.

#![forbid(unsafe_code)]

pub mod answer;
pub mod chunks;
pub mod cookies;
pub mod fields;
pub mod log;
pub mod outgoing;
pub mod query;
pub mod request;
pub mod section;

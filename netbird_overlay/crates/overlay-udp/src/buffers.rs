//! The buffers for one system call. Each thread has them once, whatever the number of its engines.

use std::cell::RefCell;
use std::mem::zeroed;

use libc::{iovec, mmsghdr, sockaddr_storage};
use overlay_core::noise::wireguard::LONGEST;

use crate::control::Control;

/// Messages for each system call: a message is a datagram, or a run of datagrams that the kernel splits or joins.
pub const BATCH: usize = 64;
/// The same for a socket on which every message may be a run, with the largest possible buffer.
pub const BATCH_OF_RUNS: usize = 16;

pub struct Buffers {
    pub bytes: Vec<u8>,
    pub names: [sockaddr_storage; BATCH],
    pub slices: [iovec; BATCH],
    pub headers: [mmsghdr; BATCH],
    pub controls: [Control; BATCH],
}

impl Buffers {
    fn new() -> Box<Self> {
        Box::new(Buffers {
            bytes: vec![0; LONGEST * BATCH_OF_RUNS],
            // SAFETY: all-zero is a valid value of these C structures.
            names: unsafe { zeroed() },
            // SAFETY: as above.
            slices: unsafe { zeroed() },
            // SAFETY: as above.
            headers: unsafe { zeroed() },
            controls: [Control::default(); BATCH],
        })
    }
}

thread_local! {
    static BUFFERS: RefCell<Box<Buffers>> = RefCell::new(Buffers::new());
}

pub fn with_buffers<R>(work: impl FnOnce(&mut Buffers) -> R) -> R {
    BUFFERS.with(|buffers| match buffers.try_borrow_mut() {
        Ok(mut buffers) => work(&mut buffers),
        // Only possible within another call of this function, of which there is none.
        Err(_) => work(&mut Buffers::new()),
    })
}

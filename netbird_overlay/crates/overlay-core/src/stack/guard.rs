//! The guard around every entry into the TCP/IP stack.

use std::panic::{catch_unwind, AssertUnwindSafe};

/// Run `work` on the stack. None if it panicked: the caller then counts the defect and ends the connection that
/// triggered it, so that no packet of one peer ends the tunnel of all.
pub(crate) fn guarded<R>(work: impl FnOnce() -> R) -> Option<R> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

/// Mark a place inside the stack, or directly before it: a test can let it panic there. All of them must be guarded.
pub(crate) fn entered() {
    #[cfg(test)]
    fault::trigger();
}

/// A defect of the stack, for tests.
#[cfg(test)]
pub(crate) mod fault {
    use std::cell::Cell;

    thread_local! {
        static COUNTDOWN: Cell<Option<u32>> = const { Cell::new(None) };
    }

    /// Let the place after `count` further ones panic.
    pub fn after(count: u32) {
        COUNTDOWN.set(Some(count));
    }

    /// Disarm. True if the panic happened.
    pub fn disarm() -> bool {
        COUNTDOWN.replace(None).is_none()
    }

    pub(super) fn trigger() {
        match COUNTDOWN.get() {
            Some(0) => {
                COUNTDOWN.set(None);
                panic!("a defect of the stack, made by a test");
            }
            Some(count) => COUNTDOWN.set(Some(count - 1)),
            None => {}
        }
    }
}

//! A whole turn of an engine in one call: what its caller would otherwise ask for with six.

use std::io;

use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::python_events::{self as python, Collected};
use crate::Engine;
use overlay_udp::Pumped;

#[pyclass(frozen, get_all, module = "netbird_overlay.engine")]
pub struct Turn {
    events: Py<PyList>,
    carried: Py<PyList>,
    strays: Py<PyList>,
    more: bool,
    blocked: bool,
    pending: bool,
    may_collect: bool,
    deadline: f64,
}

/// As `pump` and `events`; what reading the events made due, such as the announcement of a window, is sent at once.
///
/// Python's objects are made after the borrow: python_events.rs gives the reason.
pub fn turn(slf: &Bound<'_, Engine>, fd: i32, now: f64, budget: usize) -> PyResult<Turn> {
    let py = slf.py();
    let mut events = Collected::new(py);
    let mut engine = slf.try_borrow_mut()?;
    let pumped = engine.run_with(|engine| -> PyResult<Pumped> {
        engine.core.shared.clock.set(now);
        let mut pumped = pump(engine, fd, budget)?;
        engine.core.events(&mut events)?;
        if !pumped.more && !pumped.blocked && engine.core.pending() {
            // The events must not be lost: an error of the socket is the next turn's.
            if let Ok(again) = pump(engine, fd, 0) {
                pumped.more |= again.more;
                pumped.blocked = again.blocked;
            }
        }
        Ok(pumped)
    })??;
    let (pending, deadline) = (engine.core.pending(), engine.deadline_seconds());
    let (carried, strays) = (engine.core.shared.outgoing.take_carried(), engine.core.shared.strays.take());
    drop(engine);
    Ok(Turn {
        events: events.into_list()?.unbind(),
        carried: python::carried_together(py, &carried)?.unbind(),
        strays: python::strays(py, &strays)?.unbind(),
        more: pumped.more,
        blocked: pumped.blocked,
        pending,
        may_collect: pumped.may_collect,
        deadline,
    })
}

fn pump(engine: &mut Engine, fd: i32, budget: usize) -> io::Result<Pumped> {
    overlay_udp::pump(&mut engine.core, &mut engine.socket, fd, budget)
}

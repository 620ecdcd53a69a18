//! The faces of `http_core::log`.

use http_core::log::{entry, line, Account, Ended};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// Bytes of a usual line or entry beside its path.
const USUAL: usize = 512;

#[pyfunction]
#[allow(clippy::too_many_arguments)] // an object for them would cost more than the line
pub fn log_line<'py>(
    py: Python<'py>,
    id: &str,
    started_at: f64,
    duration_ns: i64,
    method: &str,
    host: &str,
    path: &[u8],
    status: u64,
    received: u64,
    sent: u64,
    client: &str,
    code: &str,
    observed: &str,
    scheme: &str,
    end: &[u8],
    tries: usize,
    caller: &[u8],
) -> Bound<'py, PyBytes> {
    let exchange = Ended {
        id,
        started: started_at,
        duration: duration_ns,
        method,
        host,
        path,
        status,
        received,
        sent,
        client,
        code,
        observed,
    };
    let mut out = Vec::with_capacity(USUAL + path.len() + end.len() + caller.len());
    line(&exchange, scheme, end, tries, caller, &mut out);
    PyBytes::new(py, &out)
}

#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn log_entry<'py>(
    py: Python<'py>,
    id: &str,
    started_at: f64,
    duration_ns: i64,
    method: &str,
    host: &str,
    path: &[u8],
    status: u64,
    received: u64,
    sent: u64,
    client: &str,
    code: &str,
    observed: &str,
    account: &str,
    service: &str,
    mechanism: &str,
    user: &str,
    groups: &[u8],
) -> Bound<'py, PyBytes> {
    let exchange = Ended {
        id,
        started: started_at,
        duration: duration_ns,
        method,
        host,
        path,
        status,
        received,
        sent,
        client,
        code,
        observed,
    };
    let mut out = Vec::with_capacity(USUAL + path.len() + groups.len());
    entry(&exchange, &Account { account, service, mechanism, user }, &mut out);
    out.extend_from_slice(groups);
    PyBytes::new(py, &out)
}

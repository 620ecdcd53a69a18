//! Fields as Python sees them: pairs of bytes. Names that most heads have are made once, so that they cost no memory and
//! their hashes are kept; other names are made anew, so that no upstream fills a table.

use http_core::fields::Fields;
use pyo3::prelude::*;
use pyo3::sync::GILOnceCell;
use pyo3::types::{PyBytes, PyList, PyTuple};

const COMMON: [&[u8]; 40] = [
    b"accept",
    b"accept-encoding",
    b"accept-language",
    b"accept-ranges",
    b"access-control-allow-origin",
    b"age",
    b"authorization",
    b"cache-control",
    b"connection",
    b"content-disposition",
    b"content-encoding",
    b"content-language",
    b"content-length",
    b"content-security-policy",
    b"content-type",
    b"cookie",
    b"date",
    b"etag",
    b"expires",
    b"host",
    b"if-modified-since",
    b"if-none-match",
    b"keep-alive",
    b"last-modified",
    b"link",
    b"location",
    b"origin",
    b"range",
    b"referer",
    b"referrer-policy",
    b"server",
    b"set-cookie",
    b"strict-transport-security",
    b"transfer-encoding",
    b"upgrade",
    b"user-agent",
    b"vary",
    b"via",
    b"x-content-type-options",
    b"x-powered-by",
];

static MADE: [GILOnceCell<Py<PyBytes>>; 40] = [const { GILOnceCell::new() }; 40];

/// Return a name as bytes.
fn name<'py>(py: Python<'py>, name: &[u8]) -> Bound<'py, PyBytes> {
    match COMMON.binary_search(&name).ok().and_then(|at| MADE.get(at)) {
        Some(cell) => cell.get_or_init(py, || PyBytes::new(py, name).unbind()).bind(py).clone(),
        None => PyBytes::new(py, name),
    }
}

/// Return fields as a list of pairs, in order.
pub fn pairs<'py>(py: Python<'py>, fields: &Fields) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for (key, value, _) in fields.iter() {
        list.append(PyTuple::new(py, [name(py, key), PyBytes::new(py, value)])?)?;
    }
    Ok(list)
}

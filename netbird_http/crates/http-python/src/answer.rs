//! The face of `http_core::answer`: pieces of the body as Python's bytes, fields as lists of pairs.

use std::collections::VecDeque;

use http_core::answer::{Answer as Core, Asked, Limits};
use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use crate::names::pairs;

create_exception!(netbird_http.engine, Violation, PyException, "The bytes are no answer.");

/// Pieces that are smaller than this on the average are joined, so that each does not cost its reader a write.
const SMALL_PIECE: usize = 2048;

#[pyclass(subclass, module = "netbird_http.engine")]
pub struct Answer {
    core: Core,
    pieces: VecDeque<Py<PyBytes>>,
    /// Size of all pieces.
    #[pyo3(get)]
    buffered: usize,
    headers: Option<Py<PyList>>,
}

#[pymethods]
impl Answer {
    #[new]
    #[pyo3(signature = (method, *, max_bytes, max_lines, upgrade=false))]
    fn new(method: &[u8], max_bytes: usize, max_lines: usize, upgrade: bool) -> Answer {
        let asked = Asked { head_only: method == b"HEAD", upgrade };
        let core = Core::new(asked, Limits { bytes: max_bytes, lines: max_lines });
        Answer { core, pieces: VecDeque::new(), buffered: 0, headers: None }
    }

    fn feed(&mut self, py: Python<'_>, data: &Bound<'_, PyBytes>) -> PyResult<()> {
        let bytes = data.as_bytes();
        let mut body = Vec::new();
        let verdict = self.core.feed(bytes, &mut body);
        for range in body {
            self.buffered += range.len();
            let piece = if range.len() == bytes.len() {
                data.clone() // a read that is all body passes as it is
            } else {
                PyBytes::new(py, bytes.get(range).unwrap_or_default())
            };
            self.pieces.push_back(piece.unbind());
        }
        verdict.map_err(|violation| Violation::new_err(violation.0))
    }

    fn feed_eof(&mut self) -> bool {
        self.core.feed_eof()
    }

    fn take<'py>(&mut self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        let count = self.pieces.len();
        if count > 1 && self.buffered <= SMALL_PIECE.saturating_mul(count) {
            let mut joined = Vec::with_capacity(self.buffered);
            for piece in self.pieces.drain(..) {
                joined.extend_from_slice(piece.as_bytes(py));
            }
            self.buffered = 0;
            return Some(PyBytes::new(py, &joined));
        }
        let piece = self.pieces.pop_front()?.into_bound(py);
        self.buffered = self.buffered.saturating_sub(piece.as_bytes().len());
        Some(piece)
    }

    fn take_interim<'py>(&mut self, py: Python<'py>) -> PyResult<Option<(u16, Bound<'py, PyList>)>> {
        if self.core.interim.is_empty() {
            return Ok(None);
        }
        let (status, fields) = self.core.interim.remove(0);
        Ok(Some((status, pairs(py, &fields)?)))
    }

    #[getter]
    fn headers<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        if let Some(headers) = &self.headers {
            return Ok(headers.bind(py).clone());
        }
        let headers = pairs(py, &self.core.headers)?;
        if self.core.head_complete {
            self.headers = Some(headers.clone().unbind());
        }
        Ok(headers)
    }

    #[getter]
    fn trailers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        pairs(py, &self.core.trailers)
    }

    #[getter]
    fn status(&self) -> u16 {
        self.core.status
    }

    #[getter]
    fn reason<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.core.reason)
    }

    #[getter]
    fn head_complete(&self) -> bool {
        self.core.head_complete
    }

    #[getter]
    fn complete(&self) -> bool {
        self.core.complete
    }

    #[getter]
    fn switched(&self) -> bool {
        self.core.switched
    }

    #[getter]
    fn keep_alive(&self) -> bool {
        self.core.keep_alive
    }

    #[getter]
    fn excess(&self) -> bool {
        self.core.excess
    }

    #[getter]
    fn fed(&self) -> u64 {
        self.core.fed
    }

    #[getter]
    fn kept_for(&self) -> Option<u32> {
        self.core.kept_for
    }
}

//! The faces of `http_core::request`: events as Python objects, whose parts are made when they are asked for.

use http_core::fields::Span;
use http_core::request::{
    judge_scope as judge, Event, Head as CoreHead, Limits, Reader as Core, Refused as CoreRefused, Scope,
};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString};

use crate::names::pairs;

/// The requests of one client's connection.
#[pyclass(module = "netbird_http.engine")]
pub struct Reader {
    core: Core,
}

#[pymethods]
impl Reader {
    #[new]
    #[pyo3(signature = (*, max_bytes, max_lines))]
    fn new(max_bytes: usize, max_lines: usize) -> Reader {
        Reader { core: Core::new(Limits { bytes: max_bytes, lines: max_lines }) }
    }

    fn feed<'py>(&mut self, py: Python<'py>, data: &Bound<'py, PyBytes>) -> PyResult<Bound<'py, PyList>> {
        let bytes = data.as_bytes();
        let mut events = Vec::new();
        let verdict = self.core.feed(bytes, &mut events);
        let list = PyList::empty(py);
        for event in events {
            match event {
                Event::Head(core) => list.append(Bound::new(py, Head { core: *core })?)?,
                Event::Body(range) if range.len() == bytes.len() => list.append(data)?, // passes as it is
                Event::Body(range) => list.append(PyBytes::new(py, bytes.get(range).unwrap_or_default()))?,
                Event::End(trailers) => {
                    list.append(Bound::new(py, End { trailers: pairs(py, &trailers)?.unbind() })?)?
                }
            }
        }
        if let Err(refused) = verdict {
            list.append(Bound::new(py, Refused { core: refused })?)?;
        }
        Ok(list)
    }

    #[getter]
    fn in_head(&self) -> bool {
        self.core.in_head()
    }

    #[getter]
    fn request_line<'py>(&self, py: Python<'py>) -> (String, Bound<'py, PyBytes>) {
        let (method, target) = self.core.request_line();
        (latin(&method), PyBytes::new(py, &target))
    }
}

fn latin(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

/// A request head that was judged.
#[pyclass(frozen, module = "netbird_http.engine")]
pub struct Head {
    core: CoreHead,
}

impl Head {
    fn part(&self, span: Span) -> &[u8] {
        span.of(&self.core.fields.bytes)
    }
}

#[pymethods]
impl Head {
    #[getter]
    fn method<'py>(&self, py: Python<'py>) -> Bound<'py, PyString> {
        PyString::new(py, &String::from_utf8_lossy(self.part(self.core.method)))
    }

    #[getter]
    fn path<'py>(&self, py: Python<'py>) -> Bound<'py, PyString> {
        PyString::new(py, &String::from_utf8_lossy(&http_core::query::percent_decoded(self.part(self.core.path))))
    }

    #[getter]
    fn raw_path<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.part(self.core.path))
    }

    #[getter]
    fn query<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.core.query.map_or(&b""[..], |query| self.part(query)))
    }

    #[getter]
    fn empty_query(&self) -> bool {
        self.core.query.is_some_and(|query| query.start == query.end)
    }

    #[getter]
    fn headers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        pairs(py, &self.core.fields)
    }

    #[getter]
    fn http11(&self) -> bool {
        self.core.modern
    }

    #[getter]
    fn has_body(&self) -> bool {
        self.core.has_body()
    }

    #[getter]
    fn keep_alive(&self) -> bool {
        self.core.keep_alive
    }

    #[getter]
    fn expects(&self) -> bool {
        self.core.expects
    }

    #[getter]
    fn upgrade(&self) -> bool {
        self.core.upgrade
    }
}

/// The end of a request that has a body.
#[pyclass(frozen, get_all, module = "netbird_http.engine")]
pub struct End {
    trailers: Py<PyList>,
}

/// A request that is refused.
#[pyclass(frozen, module = "netbird_http.engine")]
pub struct Refused {
    core: CoreRefused,
}

#[pymethods]
impl Refused {
    #[getter]
    fn status(&self) -> u16 {
        self.core.refusal.status
    }

    #[getter]
    fn reason(&self) -> &'static str {
        self.core.refusal.reason
    }

    #[getter]
    fn method(&self) -> String {
        latin(&self.core.method)
    }

    #[getter]
    fn target<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.core.target)
    }
}

#[pyfunction]
pub fn judge_scope(scope: &Bound<'_, PyAny>) -> Option<&'static str> {
    judged(scope).unwrap_or(Some("scope_malformed"))
}

/// Return the reason of a refusal. An error is a scope that lacks a part, or has one of another type.
fn judged(scope: &Bound<'_, PyAny>) -> PyResult<Option<&'static str>> {
    let py = scope.py();
    let path = scope.call_method1("get", ("raw_path",))?;
    if path.is_none() {
        return Ok(Some("raw_path_missing"));
    }
    let path = path.downcast_into::<PyBytes>()?;
    let version: String = scope.get_item("http_version")?.extract()?;
    let query = scope.call_method1("get", ("query_string", PyBytes::new(py, b"")))?.downcast_into::<PyBytes>()?;
    let method = scope.call_method1("get", ("method", "GET"))?;
    let method = method.call_method1("encode", ("latin-1",))?.downcast_into::<PyBytes>()?;
    let mut headers = Vec::new();
    for pair in scope.get_item("headers")?.try_iter()? {
        let pair = pair?;
        let (name, value) = (pair.get_item(0)?, pair.get_item(1)?);
        headers.push((name.downcast_into::<PyBytes>()?, value.downcast_into::<PyBytes>()?));
    }
    let scope = Scope {
        method: method.as_bytes(),
        version: version.as_bytes(),
        path: path.as_bytes(),
        query: query.as_bytes(),
    };
    let fields = headers.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    Ok(judge(&scope, fields).err().map(|refusal| refusal.reason))
}

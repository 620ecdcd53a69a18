//! Python's class for addresses in the outside network, and the paths that calls take and return.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use overlay_core::path::{Carrier, Path};
use overlay_core::wire::prefix::canonical;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyInt};
use pyo3::IntoPyObjectExt;

#[pyclass(frozen, eq, hash, module = "netbird_overlay.engine")]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Endpoint(pub SocketAddr);

#[pymethods]
impl Endpoint {
    #[classattr]
    fn __match_args__() -> (&'static str, &'static str, &'static str) {
        ("host", "port", "scope")
    }

    #[new]
    #[pyo3(signature = (host, port, scope = 0))]
    fn new(host: &str, port: i64, scope: i64) -> PyResult<Self> {
        let ip = host.parse::<IpAddr>().map_err(|_| PyValueError::new_err(format!("not an IP address: {host:?}")))?;
        let port = u16::try_from(port).map_err(|_| PyValueError::new_err(format!("not a port: {port}")))?;
        let scope = u32::try_from(scope).map_err(|_| PyValueError::new_err(format!("not a scope: {scope}")))?;
        match canonical(ip) {
            IpAddr::V4(_) if scope != 0 => Err(PyValueError::new_err("an IPv4 address has no scope")),
            IpAddr::V4(v4) => Ok(Endpoint(SocketAddr::new(IpAddr::V4(v4), port))),
            IpAddr::V6(v6) => Ok(Endpoint(SocketAddr::V6(SocketAddrV6::new(v6, port, 0, scope)))),
        }
    }

    #[getter]
    fn host(&self) -> String {
        self.0.ip().to_string()
    }

    #[getter]
    fn port(&self) -> u16 {
        self.0.port()
    }

    #[getter]
    fn scope(&self) -> u32 {
        match self.0 {
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(v6) => v6.scope_id(),
        }
    }

    fn __repr__(&self) -> String {
        match self.scope() {
            0 => format!("Endpoint('{}', {})", self.host(), self.port()),
            scope => format!("Endpoint('{}', {}, {scope})", self.host(), self.port()),
        }
    }

    fn __str__(&self) -> String {
        self.0.to_string()
    }

    fn __reduce__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        (py.get_type::<Endpoint>(), (self.host(), self.port(), self.scope())).into_py_any(py)
    }
}

/// Read an `Endpoint` or the number of a carrier.
pub fn path(value: &Bound<'_, PyAny>) -> PyResult<Path> {
    if let Ok(endpoint) = value.downcast::<Endpoint>() {
        return Ok(Path::udp(endpoint.get().0));
    }
    if value.downcast::<PyInt>().is_err() || value.downcast::<PyBool>().is_ok() {
        return Err(PyTypeError::new_err("an Endpoint or the number of a carrier is needed"));
    }
    let number: Option<Carrier> = value.extract::<u64>().ok().and_then(Carrier::new);
    number.map(Path::Carrier).ok_or_else(|| PyValueError::new_err(format!("not a number of a carrier: {value}")))
}

/// Make the object that `path` reads.
pub fn path_object(py: Python<'_>, path: Path) -> PyResult<Py<PyAny>> {
    match path {
        Path::Udp { remote, .. } => Endpoint(remote).into_py_any(py),
        Path::Carrier(carrier) => carrier.get().into_py_any(py),
    }
}

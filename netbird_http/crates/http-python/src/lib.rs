//! The Python module of the engine; engine.pyi documents it. Only faces: each calls one function of `http-core`.

#![forbid(unsafe_code)]

mod answer;
mod log;
mod names;
mod outgoing;
mod request;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// Return the spelling of a name that all its aliases share.
#[pyfunction]
fn fold<'py>(py: Python<'py>, name: &[u8]) -> Bound<'py, PyBytes> {
    PyBytes::new(py, &http_core::fields::fold(name))
}

#[pymodule]
fn engine(module: &Bound<'_, PyModule>) -> PyResult<()> {
    outgoing::register(module)?;
    module.add_class::<answer::Answer>()?;
    module.add("Violation", module.py().get_type::<answer::Violation>())?;
    module.add_class::<request::Reader>()?;
    module.add_class::<request::Head>()?;
    module.add_class::<request::End>()?;
    module.add_class::<request::Refused>()?;
    module.add_function(wrap_pyfunction!(request::judge_scope, module)?)?;
    module.add_function(wrap_pyfunction!(log::log_line, module)?)?;
    module.add_function(wrap_pyfunction!(log::log_entry, module)?)?;
    module.add_function(wrap_pyfunction!(fold, module)?)
}

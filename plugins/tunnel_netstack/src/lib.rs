use pyo3::prelude::*;
#[pymodule]
fn engine(_m: &Bound<'_, PyModule>) -> PyResult<()> { Ok(()) }

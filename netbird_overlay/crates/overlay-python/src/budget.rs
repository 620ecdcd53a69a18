//! Python's handle on bytes that several engines share.

use std::sync::Arc;

use overlay_core::stack::memory::Budget;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

#[pyclass(frozen, module = "netbird_overlay.engine")]
pub struct BufferBudget(pub Arc<Budget>);

#[pymethods]
impl BufferBudget {
    #[new]
    fn new(limit: usize) -> PyResult<Self> {
        if limit == 0 {
            return Err(PyValueError::new_err("limit must be above 0"));
        }
        Ok(BufferBudget(Arc::new(Budget::new(limit))))
    }

    #[getter]
    fn limit(&self) -> usize {
        self.0.limit()
    }

    #[getter]
    fn used(&self) -> usize {
        self.0.used()
    }
}

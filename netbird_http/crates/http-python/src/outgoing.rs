//! Faces of the request head for an upstream.

use std::collections::HashMap;
use std::sync::Arc;

use http_core::cookies::Cookies;
use http_core::fields::{fold, folds_to};
use http_core::outgoing::{
    can_carry, Destination, Draft as CoreDraft, OutgoingRules as Core, Pair, Request, Unsendable as Why,
};
use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};

create_exception!(netbird_http.engine, NotTheOwner, PyException, "A name belongs to the core or to another plugin.");
create_exception!(netbird_http.engine, Unsendable, PyException, "A head cannot be sent.");

fn unsendable(why: Why) -> PyErr {
    Unsendable::new_err(why.0)
}

/// The rules for one upstream of one route.
#[pyclass(frozen, module = "netbird_http.engine")]
pub struct OutgoingRules {
    core: Arc<Core>,
}

#[pymethods]
impl OutgoingRules {
    #[new]
    #[pyo3(signature = (*, path, query, cut, host, owners, cookies, custom, pseudonym))]
    #[allow(clippy::too_many_arguments)] // by name, in Python
    fn new(
        path: Vec<u8>,
        query: Vec<u8>,
        cut: usize,
        host: Option<Vec<u8>>,
        owners: HashMap<Vec<u8>, String>,
        cookies: Vec<(Vec<u8>, String)>,
        custom: Vec<Pair>,
        pseudonym: &[u8],
    ) -> OutgoingRules {
        let destination = Destination { path, query, cut, host };
        OutgoingRules { core: Arc::new(Core::new(destination, owners, Cookies::new(cookies), custom, pseudonym)) }
    }

    #[allow(clippy::too_many_arguments)] // one call an exchange
    fn begin(
        &self,
        raw: &Bound<'_, PyList>,
        method: &str,
        raw_path: &[u8],
        query: &[u8],
        empty_query: bool,
        authority: &[u8],
        scheme: &str,
        address: &str,
        upgrades: bool,
        framed_in_head: bool,
        carried_body: Option<bool>,
    ) -> PyResult<Draft> {
        let method = latin(method)?;
        let request = Request {
            method: &method,
            raw_path,
            query,
            empty_query,
            authority,
            scheme: scheme.as_bytes(),
            address: address.as_bytes(),
            upgrades,
            framed_in_head,
            carried_body,
        };
        let lines = raw.iter().map(line_of).collect::<PyResult<Vec<_>>>()?;
        let fields = lines.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        let draft = self.core.begin(&request, fields).map_err(unsendable)?;
        Ok(Draft { core: draft, rules: self.core.clone(), sealed: false })
    }
}

/// Take a line, which is a tuple of two bytes objects.
fn line_of<'py>(pair: Bound<'py, PyAny>) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
    let pair = pair.downcast_into::<PyTuple>()?;
    Ok((pair.get_item(0)?.downcast_into()?, pair.get_item(1)?.downcast_into()?))
}

/// Return a text's bytes in Latin-1. ValueError for other characters.
fn latin(text: &str) -> PyResult<Vec<u8>> {
    let byte = |letter| u8::try_from(u32::from(letter)).map_err(|_| PyValueError::new_err("not Latin-1"));
    text.chars().map(byte).collect()
}

/// The head of one request while plugins may change it.
#[pyclass(module = "netbird_http.engine")]
pub struct Draft {
    core: CoreDraft,
    rules: Arc<Core>,
    sealed: bool,
}

#[pymethods]
impl Draft {
    fn hand(slf: Py<Draft>, owner: String) -> OutgoingHead {
        OutgoingHead { draft: slf, owner }
    }

    fn written(&mut self, py: Python<'_>) -> PyResult<WrittenHead> {
        self.sealed = true;
        let written = self.core.written().map_err(unsendable)?;
        Ok(WrittenHead {
            head: PyBytes::new(py, &written.head).unbind(),
            method: PyBytes::new(py, &self.core.method).unbind(),
            has_body: written.has_body,
            chunked: written.chunked,
            upgrade: PyTuple::new(py, self.core.upgrade.iter().map(|name| PyBytes::new(py, name)))?.unbind(),
        })
    }
}

/// A request head as it is sent, and the framing of its body.
#[pyclass(frozen, get_all, module = "netbird_http.engine")]
pub struct WrittenHead {
    head: Py<PyBytes>,
    method: Py<PyBytes>,
    has_body: bool,
    chunked: bool,
    upgrade: Py<PyTuple>,
}

/// The request head for the upstream, as a single transform may change it.
#[pyclass(frozen, module = "netbird_http.engine")]
pub struct OutgoingHead {
    draft: Py<Draft>,
    owner: String,
}

#[pymethods]
impl OutgoingHead {
    #[new]
    #[pyo3(signature = (method, target, fields, owners, owner = String::new()))]
    fn new(
        py: Python<'_>,
        method: Vec<u8>,
        target: Vec<u8>,
        fields: Vec<Pair>,
        owners: HashMap<Vec<u8>, String>,
        owner: String,
    ) -> PyResult<OutgoingHead> {
        let rules = Core::new(Destination::default(), owners, Cookies::default(), Vec::new(), b"");
        let core = CoreDraft::bare(method, target, fields);
        Ok(OutgoingHead { draft: Py::new(py, Draft { core, rules: Arc::new(rules), sealed: false })?, owner })
    }

    #[getter]
    fn method<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.draft.borrow(py).core.method)
    }

    #[getter]
    fn target<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.draft.borrow(py).core.target)
    }

    #[getter]
    fn headers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let draft = self.draft.borrow(py);
        PyTuple::new(
            py,
            draft.core.fields.iter().map(|(name, value)| (PyBytes::new(py, name), PyBytes::new(py, value))),
        )
    }

    fn get<'py>(&self, py: Python<'py>, name: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let name = name_of(name)?.as_bytes().to_ascii_lowercase();
        let draft = self.draft.borrow(py);
        Ok(draft.core.fields.iter().find(|(key, _)| *key == name).map(|(_, value)| PyBytes::new(py, value)))
    }

    fn set(&self, py: Python<'_>, name: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.change(py, &[name_of(name)?], &[(name_of(name)?, value_of(name, value)?)])
    }

    fn add(&self, py: Python<'_>, name: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let line = (name_of(name)?, value_of(name, value)?);
        let mut draft = self.open(py, &[line.0])?;
        check(&line)?;
        draft.core.append(line.0.as_bytes(), line.1.as_bytes());
        Ok(())
    }

    #[pyo3(signature = (*names))]
    fn delete(&self, py: Python<'_>, names: &Bound<'_, PyTuple>) -> PyResult<()> {
        let names = names.iter().map(|name| Ok(name_of(&name)?.clone())).collect::<PyResult<Vec<_>>>()?;
        self.change(py, &names.iter().collect::<Vec<_>>(), &[])
    }

    fn replace(&self, py: Python<'_>, names: &Bound<'_, PyAny>, lines: &Bound<'_, PyAny>) -> PyResult<()> {
        let names = names.try_iter()?.map(|name| Ok(name_of(&name?)?.clone())).collect::<PyResult<Vec<_>>>()?;
        let pairs = lines.try_iter()?.map(|line| line?.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>());
        let pairs = pairs.collect::<PyResult<Vec<_>>>()?;
        let lines = pairs.iter().map(|(name, value)| Ok((name_of(name)?, value_of(name, value)?)));
        self.change(py, &names.iter().collect::<Vec<_>>(), &lines.collect::<PyResult<Vec<_>>>()?)
    }

    fn set_or_delete(&self, py: Python<'_>, name: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        if value.is_none() {
            self.change(py, &[name_of(name)?], &[])
        } else {
            self.set(py, name, value)
        }
    }
}

impl OutgoingHead {
    /// Return the draft, if this plugin may change these names.
    fn open<'py>(&self, py: Python<'py>, names: &[&Bound<'py, PyBytes>]) -> PyResult<PyRefMut<'py, Draft>> {
        let draft = self.draft.bind(py).try_borrow_mut()?;
        if draft.sealed {
            return Err(PyRuntimeError::new_err("the head was written: a transform may change it only while it runs"));
        }
        for name in names {
            if let Some(refusal) = draft.rules.refusal(name.as_bytes(), &self.owner) {
                return Err(NotTheOwner::new_err(refusal.0));
            }
        }
        Ok(draft)
    }

    /// Remove every line of these names, then append `lines`.
    fn change<'py>(
        &self,
        py: Python<'py>,
        names: &[&Bound<'py, PyBytes>],
        lines: &[(&Bound<'py, PyBytes>, &Bound<'py, PyBytes>)],
    ) -> PyResult<()> {
        let mut draft = self.open(py, names)?;
        let folded: Vec<Vec<u8>> = names.iter().map(|name| fold(name.as_bytes())).collect();
        for line in lines {
            if !folded.iter().any(|other| folds_to(line.0.as_bytes(), other)) {
                return Err(PyValueError::new_err(format!("{} is not among the names to replace", line.0.repr()?)));
            }
            check(line)?;
        }
        draft.core.remove(&folded);
        for (name, value) in lines {
            draft.core.append(name.as_bytes(), value.as_bytes());
        }
        Ok(())
    }
}

fn check((name, value): &(&Bound<'_, PyBytes>, &Bound<'_, PyBytes>)) -> PyResult<()> {
    if can_carry(name.as_bytes(), value.as_bytes()) {
        return Ok(());
    }
    Err(PyValueError::new_err(format!("header {} cannot carry its value", name.repr()?)))
}

fn name_of<'a, 'py>(name: &'a Bound<'py, PyAny>) -> PyResult<&'a Bound<'py, PyBytes>> {
    name.downcast::<PyBytes>().map_err(|_| wrong_type(format!("the header name {}", shown(name)), name))
}

fn value_of<'a, 'py>(name: &Bound<'py, PyAny>, value: &'a Bound<'py, PyAny>) -> PyResult<&'a Bound<'py, PyBytes>> {
    value.downcast::<PyBytes>().map_err(|_| wrong_type(format!("the value of header {}", shown(name)), value))
}

fn wrong_type(what: String, object: &Bound<'_, PyAny>) -> PyErr {
    let kind = object.get_type().name().map_or_else(|_| "no bytes".to_string(), |name| name.to_string());
    PyTypeError::new_err(format!("{what} is {kind}: write it in bytes"))
}

fn shown(object: &Bound<'_, PyAny>) -> String {
    object.repr().map_or_else(|_| "?".to_string(), |text| text.to_string())
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("NotTheOwner", py.get_type::<NotTheOwner>())?;
    module.add("Unsendable", py.get_type::<Unsendable>())?;
    module.add_class::<OutgoingRules>()?;
    module.add_class::<Draft>()?;
    module.add_class::<WrittenHead>()?;
    module.add_class::<OutgoingHead>()
}

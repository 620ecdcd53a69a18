//! Python's classes for events and states: small frozen objects, documented in engine.pyi.

use std::net::{IpAddr, SocketAddr};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyInt, PyList, PyString, PyTuple};
use pyo3::{IntoPyObjectExt, PyClass, PyClassInitializer};

use crate::clock::seconds;
use crate::engine::Engine as Core;
use crate::events::{ConnId, Event, EventSink};
use crate::prefix::{PeerId, Prefix};

type Address = (String, u16);

macro_rules! event {
    ($name:ident { $($field:ident: $type:ty),* $(,)? }) => {
        #[pyclass(frozen, get_all, module = "netbird_overlay.engine")]
        pub struct $name {
            $(pub $field: $type,)*
        }

        #[pymethods]
        impl $name {
            #[classattr]
            fn __match_args__(py: Python<'_>) -> PyResult<Bound<'_, PyTuple>> {
                PyTuple::new(py, [$(stringify!($field)),*])
            }

            fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
                let mut fields = Vec::new();
                $(
                    let value = (&self.$field).into_bound_py_any(py)?;
                    fields.push(format!("{}={}", stringify!($field), value.repr()?));
                )*
                Ok(format!("{}({})", stringify!($name), fields.join(", ")))
            }
        }
    };
}

event!(Accepted { conn: ConnId, local: Address, remote: Address, port: u16, peer: Py<PyBytes> });
event!(Connected { conn: ConnId, local: Address });
event!(ConnectFailed { conn: ConnId, reason: &'static str });
event!(Data { conn: ConnId, data: Py<PyBytes> });
event!(Eof { conn: ConnId });
event!(Writable { conn: ConnId });
event!(Closed { conn: ConnId, reason: &'static str });
event!(Handshake { peer: Py<PyBytes> });
event!(EndpointChanged { peer: Py<PyBytes>, endpoint: Py<PyTuple> });
event!(PumpResult { received: usize, sent: usize, more: bool, blocked: bool, deadline: f64 });
event!(PeerState {
    public_key: Py<PyBytes>,
    endpoint: Option<Py<PyTuple>>,
    allowed_ips: Vec<String>,
    last_handshake: Option<f64>,
    rx: u64,
    tx: u64,
    keepalive: Option<u16>,
});

impl PeerState {
    /// The state of an existing peer; a missing one gives the default values.
    pub fn of(py: Python<'_>, core: &Core, id: PeerId) -> Self {
        let peer = core.wg.peer(id);
        let now = core.shared.now();
        PeerState {
            public_key: PyBytes::new(py, peer.map_or(&[], |peer| &peer.key)).unbind(),
            endpoint: peer.and_then(|peer| peer.endpoint).and_then(|to| endpoint(py, to).ok()).map(Bound::unbind),
            allowed_ips: core.routes.of(id).iter().map(Prefix::to_string).collect(),
            last_handshake: peer.and_then(|peer| peer.last_handshake(now)).map(seconds),
            rx: peer.map_or(0, |peer| peer.received),
            tx: peer.map_or(0, |peer| peer.sent),
            keepalive: peer.and_then(|peer| peer.keepalive),
        }
    }
}

/// The form of asyncio's `sendto`: scoped IPv6 addresses have four parts.
pub fn endpoint(py: Python<'_>, to: SocketAddr) -> PyResult<Bound<'_, PyTuple>> {
    match to {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => {
            (v6.ip().to_string(), v6.port(), 0, v6.scope_id()).into_pyobject(py)
        }
        _ => (to.ip().to_string(), to.port()).into_pyobject(py),
    }
}

fn overlay((ip, port): (IpAddr, u16)) -> Address {
    (ip.to_string(), port)
}

pub struct ListSink<'py> {
    pub py: Python<'py>,
    pub list: Bound<'py, PyList>,
}

impl ListSink<'_> {
    fn append<T: PyClass + Into<PyClassInitializer<T>>>(&self, event: T) -> PyResult<()> {
        self.list.append(Bound::new(self.py, event)?)
    }
}

impl EventSink for ListSink<'_> {
    type Error = PyErr;

    fn event(&mut self, event: Event) -> PyResult<()> {
        let key = |key: [u8; 32]| PyBytes::new(self.py, &key).unbind();
        match event {
            Event::Accepted { conn, local, remote, peer } => self.append(Accepted {
                conn,
                port: local.1,
                local: overlay(local),
                remote: overlay(remote),
                peer: key(peer),
            }),
            Event::Connected { conn, local } => self.append(Connected { conn, local: overlay(local) }),
            Event::ConnectFailed { conn, reason } => self.append(ConnectFailed { conn, reason: reason.name() }),
            Event::Eof { conn } => self.append(Eof { conn }),
            Event::Writable { conn } => self.append(Writable { conn }),
            Event::Closed { conn, reason } => self.append(Closed { conn, reason: reason.name() }),
            Event::Handshake { peer } => self.append(Handshake { peer: key(peer) }),
            Event::EndpointChanged { peer, endpoint: to } => {
                self.append(EndpointChanged { peer: key(peer), endpoint: endpoint(self.py, to)?.unbind() })
            }
        }
    }

    fn data(&mut self, conn: ConnId, length: usize, fill: &mut dyn FnMut(&mut [u8])) -> PyResult<()> {
        let data = PyBytes::new_with(self.py, length, |buffer| {
            fill(buffer);
            Ok(())
        })?;
        self.append(Data { conn, data: data.unbind() })
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Accepted>()?;
    module.add_class::<Connected>()?;
    module.add_class::<ConnectFailed>()?;
    module.add_class::<Data>()?;
    module.add_class::<Eof>()?;
    module.add_class::<Writable>()?;
    module.add_class::<Closed>()?;
    module.add_class::<Handshake>()?;
    module.add_class::<EndpointChanged>()?;
    module.add_class::<PumpResult>()?;
    module.add_class::<PeerState>()?;
    Ok(())
}

/// The type aliases of engine.pyi, so that they can be imported at run time.
pub fn register_aliases(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let (text, number) = (py.get_type::<PyString>(), py.get_type::<PyInt>());
    let tuple = py.get_type::<PyTuple>();
    let address = tuple.get_item((&text, &number))?;
    module.add("Endpoint", &address)?;
    module.add("OverlayAddress", &address)?;
    module.add("Rule", tuple.get_item((&text, &number, &number, &number))?)?;
    let kinds = ["Connected", "ConnectFailed", "Data", "Eof", "Writable", "Closed", "Handshake", "EndpointChanged"];
    let mut event = module.getattr("Accepted")?;
    for kind in kinds {
        event = event.bitor(module.getattr(kind)?)?;
    }
    module.add("Event", event)
}

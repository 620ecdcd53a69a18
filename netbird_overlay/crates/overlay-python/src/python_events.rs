//! Python's classes for events and states: small frozen objects, documented in engine.pyi.

use std::net::{IpAddr, SocketAddr};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyInt, PyList, PyString, PyTuple};
use pyo3::{IntoPyObjectExt, PyClass, PyClassInitializer};

use overlay_core::engine::Engine as Core;
use overlay_core::events::{ConnId, Event, EventSink};
use overlay_core::path::Carrier;
use overlay_core::time::seconds;
use overlay_core::wire::prefix::{PeerId, Prefix};

use crate::endpoint::{path_object, Endpoint};

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
event!(UdpReceived { socket: u64, data: Py<PyBytes>, remote: Address, peer: Py<PyBytes> });
event!(UdpFailed { socket: u64, reason: &'static str });
event!(Handshake { peer: Py<PyBytes> });
event!(EndpointChanged { peer: Py<PyBytes>, endpoint: Endpoint });
event!(PumpResult { received: usize, sent: usize, more: bool, blocked: bool, deadline: f64 });
event!(PeerState {
    public_key: Py<PyBytes>,
    endpoint: Option<Py<PyAny>>,
    pinned: bool,
    allowed_ips: Vec<String>,
    last_handshake: Option<f64>,
    rx: u64,
    tx: u64,
    keepalive: Option<u16>,
});

impl PeerState {
    /// The state of an existing peer; a missing one gives the default values.
    pub fn of(py: Python<'_>, core: &Core, id: PeerId) -> PyResult<Self> {
        let peer = core.wg.peer(id);
        let now = core.shared.now();
        Ok(PeerState {
            public_key: PyBytes::new(py, peer.map_or(&[], |peer| &peer.key)).unbind(),
            endpoint: peer.and_then(|peer| peer.endpoint).map(|path| path_object(py, path)).transpose()?,
            pinned: peer.is_some_and(|peer| peer.pinned),
            allowed_ips: core.routes.of(id).iter().map(Prefix::to_string).collect(),
            last_handshake: peer.and_then(|peer| peer.last_handshake(now)).map(seconds),
            rx: peer.map_or(0, |peer| peer.received),
            tx: peer.map_or(0, |peer| peer.sent),
            keepalive: peer.and_then(|peer| peer.keepalive),
        })
    }
}

fn overlay((ip, port): (IpAddr, u16)) -> Address {
    (ip.to_string(), port)
}

/// Collects events while the engine is borrowed, and makes Python's objects afterwards.
///
/// Their creation may run the collector, and that a finaliser which calls the engine. Only `bytes` are made at once, so
/// that data is copied once; the collector does not track them.
pub struct Collected<'py> {
    py: Python<'py>,
    items: Vec<Item>,
}

enum Item {
    Event(Event),
    Data(ConnId, Py<PyBytes>),
}

impl<'py> Collected<'py> {
    pub fn new(py: Python<'py>) -> Self {
        Collected { py, items: Vec::new() }
    }

    pub fn into_list(self) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(self.py);
        for item in self.items {
            match item {
                Item::Event(event) => append_event(&list, event)?,
                Item::Data(conn, data) => append(&list, Data { conn, data })?,
            }
        }
        Ok(list)
    }
}

impl EventSink for Collected<'_> {
    type Error = PyErr;

    fn event(&mut self, event: Event) -> PyResult<()> {
        self.items.push(Item::Event(event));
        Ok(())
    }

    fn data(&mut self, conn: ConnId, length: usize, fill: &mut dyn FnMut(&mut [u8])) -> PyResult<()> {
        let data = PyBytes::new_with(self.py, length, |buffer| {
            fill(buffer);
            Ok(())
        })?;
        self.items.push(Item::Data(conn, data.unbind()));
        Ok(())
    }
}

/// The datagrams for carriers, as `Engine.carried` lists them.
pub fn carried<'py>(py: Python<'py>, datagrams: &[(Carrier, Vec<u8>)]) -> PyResult<Bound<'py, PyList>> {
    PyList::new(py, datagrams.iter().map(|(carrier, datagram)| (carrier.get(), PyBytes::new(py, datagram))))
}

/// The datagrams for carriers, successive ones of one carrier in one list, so that no call is made for each.
pub fn carried_together<'py>(py: Python<'py>, datagrams: &[(Carrier, Vec<u8>)]) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for together in datagrams.chunk_by(|(carrier, _), (next, _)| carrier == next) {
        let Some((carrier, _)) = together.first() else { continue };
        let datagrams = PyList::new(py, together.iter().map(|(_, datagram)| PyBytes::new(py, datagram)))?;
        list.append((carrier.get(), datagrams))?;
    }
    Ok(list)
}

/// The datagrams that are not WireGuard's, as `Engine.strays` lists them.
pub fn strays<'py>(py: Python<'py>, datagrams: &[(Vec<u8>, SocketAddr)]) -> PyResult<Bound<'py, PyList>> {
    PyList::new(py, datagrams.iter().map(|(datagram, from)| (PyBytes::new(py, datagram), Endpoint(*from))))
}

fn append<T: PyClass + Into<PyClassInitializer<T>>>(list: &Bound<'_, PyList>, event: T) -> PyResult<()> {
    list.append(Bound::new(list.py(), event)?)
}

fn append_event(list: &Bound<'_, PyList>, event: Event) -> PyResult<()> {
    let bytes = |bytes: &[u8]| PyBytes::new(list.py(), bytes).unbind();
    match event {
        Event::Accepted { conn, local, remote, peer } => append(
            list,
            Accepted { conn, port: local.1, local: overlay(local), remote: overlay(remote), peer: bytes(&peer) },
        ),
        Event::Connected { conn, local } => append(list, Connected { conn, local: overlay(local) }),
        Event::ConnectFailed { conn, reason } => append(list, ConnectFailed { conn, reason: reason.name() }),
        Event::Eof { conn } => append(list, Eof { conn }),
        Event::Writable { conn } => append(list, Writable { conn }),
        Event::Closed { conn, reason } => append(list, Closed { conn, reason: reason.name() }),
        Event::UdpReceived(received) => append(
            list,
            UdpReceived {
                socket: received.id,
                data: bytes(&received.data),
                remote: overlay(received.remote),
                peer: bytes(&received.peer),
            },
        ),
        Event::UdpFailed { conn, reason } => append(list, UdpFailed { socket: conn, reason: reason.name() }),
        Event::Handshake { peer } => append(list, Handshake { peer: bytes(&peer) }),
        Event::EndpointChanged { peer, endpoint: to } => {
            append(list, EndpointChanged { peer: bytes(&peer), endpoint: Endpoint(to) })
        }
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
    module.add_class::<UdpReceived>()?;
    module.add_class::<UdpFailed>()?;
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
    module.add("OverlayAddress", &address)?;
    module.add("Path", py.get_type::<Endpoint>().bitor(&number)?)?;
    module.add("Rule", tuple.get_item((&text, &number, &number, &number))?)?;
    let kinds = [
        "Connected",
        "ConnectFailed",
        "Data",
        "Eof",
        "Writable",
        "Closed",
        "UdpReceived",
        "UdpFailed",
        "Handshake",
        "EndpointChanged",
    ];
    let mut event = module.getattr("Accepted")?;
    for kind in kinds {
        event = event.bitor(module.getattr(kind)?)?;
    }
    module.add("Event", event)
}

//! The Python module of the engine; engine.pyi documents it.

mod budget;
mod endpoint;
mod python_events;
mod turn;

use std::net::IpAddr;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;

use pyo3::buffer::{PyBuffer, ReadOnlyCell};
use pyo3::create_exception;
use pyo3::exceptions::{PyConnectionError, PyOSError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyBytes, PyDict, PyList};

use crate::budget::BufferBudget;
use crate::endpoint::{path, Endpoint};
use crate::python_events as python;
use overlay_core::chance::Entropy;
use overlay_core::engine::{Engine as Core, Options};
use overlay_core::events::{ConnId, Key};
use overlay_core::noise::wireguard::{PeerConfig, LONGEST};
use overlay_core::path::Path;
use overlay_core::stack::conn::Limits;
use overlay_core::stack::filter::{Filter, Rule};
use overlay_core::stack::memory::Budget;
use overlay_core::stack::tcp::ConnectError;
use overlay_core::stack::udp::{SendError, UdpId};
use overlay_core::time::SECOND;
use overlay_core::wire::prefix::{parse_address, Prefix};
use overlay_udp::Socket;
use zeroize::Zeroizing;

create_exception!(netbird_overlay.engine, EngineError, PyRuntimeError);
create_exception!(netbird_overlay.engine, NoRoute, PyConnectionError);
create_exception!(netbird_overlay.engine, NoEndpoint, PyConnectionError);
create_exception!(netbird_overlay.engine, LimitReached, PyConnectionError);

/// Default maximum size of an engine's buffers.
const BUFFERS: usize = 256 << 20;

type RuleTuple = (String, i64, i64, i64);

#[pyclass(module = "netbird_overlay.engine")]
struct Engine {
    core: Core,
    socket: Socket,
    broken: bool,
}

impl Engine {
    /// Run `work`. After a panic, this call and all later ones raise EngineError.
    fn run<R>(&mut self, work: impl FnOnce(&mut Core) -> R) -> PyResult<R> {
        self.run_with(|engine| {
            engine.core.shared.clock.enter();
            work(&mut engine.core)
        })
    }

    fn run_at<R>(&mut self, now: f64, work: impl FnOnce(&mut Core) -> R) -> PyResult<R> {
        self.run_with(|engine| {
            engine.core.shared.clock.set(now);
            work(&mut engine.core)
        })
    }

    fn run_with<R>(&mut self, work: impl FnOnce(&mut Self) -> R) -> PyResult<R> {
        if self.broken {
            return Err(EngineError::new_err("the engine is broken by an earlier defect"));
        }
        catch_unwind(AssertUnwindSafe(|| work(self))).map_err(|cause| {
            self.broken = true;
            let text = cause.downcast_ref::<String>().map(String::as_str);
            let text = text.or(cause.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message");
            EngineError::new_err(format!("the engine is broken: {text}"))
        })
    }

    fn deadline_seconds(&self) -> f64 {
        self.core.shared.clock.on_callers_clock(self.core.deadline())
    }
}

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(signature = (
        private_key, *, mtu = 1280, receive_buffer = 4 << 20, send_buffer = 4 << 20, max_connections = 4096,
        reserved_for_dials = 0, fair = false, max_buffer_bytes = BUFFERS, budget = None, connect_timeout = 60.0, handshakes_per_second = 100, seed = None, date = None
    ))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        private_key: &[u8],
        mtu: usize,
        receive_buffer: usize,
        send_buffer: usize,
        max_connections: usize,
        reserved_for_dials: usize,
        fair: bool,
        max_buffer_bytes: usize,
        budget: Option<&Bound<'_, BufferBudget>>,
        connect_timeout: f64,
        handshakes_per_second: u64,
        seed: Option<&[u8]>,
        date: Option<f64>,
    ) -> PyResult<Self> {
        let within = |name: &str, value: usize, low: usize, high: usize| {
            if (low..=high).contains(&value) {
                Ok(value)
            } else {
                Err(PyValueError::new_err(format!("{name} must be {low}..{high}, not {value}")))
            }
        };
        if !(connect_timeout > 0.0 && connect_timeout <= 86_400.0) {
            return Err(PyValueError::new_err("connect_timeout must be above 0 and at most a day"));
        }
        let limits = Limits {
            receive_buffer: within("receive_buffer", receive_buffer, 4096, 1 << 26)?,
            send_buffer: within("send_buffer", send_buffer, 4096, 1 << 26)?,
            max_connections,
            reserved_for_dials,
            fair,
            max_buffer_bytes,
            connect_timeout: (connect_timeout * SECOND as f64) as u64,
        };
        let core = Core::new(Options {
            private_key: Zeroizing::new(key("private_key", private_key)?),
            mtu: within("mtu", mtu, 576, 8192)?,
            limits,
            budget: budget.map_or_else(|| Arc::new(Budget::new(usize::MAX)), |budget| budget.get().0.clone()),
            handshakes_per_second,
            entropy: Entropy::new(seed),
            date: date.filter(|seconds| seconds.is_finite()),
        });
        Ok(Engine { core, socket: Socket::default(), broken: false })
    }

    #[getter]
    fn public_key<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.core.wg.public_key())
    }

    #[getter]
    fn addresses(&self) -> Vec<String> {
        self.core.tcp.addresses().iter().map(IpAddr::to_string).collect()
    }

    #[getter]
    fn pending(&self) -> bool {
        self.core.pending()
    }

    #[getter]
    fn deadline(&self) -> f64 {
        self.deadline_seconds()
    }

    fn set_addresses(&mut self, addresses: Vec<String>) -> PyResult<()> {
        let mut parsed = Vec::new();
        for text in &addresses {
            let address = parse_address(text).map_err(PyValueError::new_err)?;
            let unusable = match address {
                IpAddr::V4(v4) => v4.is_multicast() || v4.is_broadcast(),
                IpAddr::V6(v6) => v6.is_multicast(),
            };
            if unusable || address.is_unspecified() || address.is_loopback() {
                return Err(PyValueError::new_err(format!("not an address a node can have: {text:?}")));
            }
            if address.is_ipv6() && self.core.shared.mtu < 1280 {
                return Err(PyValueError::new_err("IPv6 needs an mtu of at least 1280"));
            }
            if !parsed.contains(&address) {
                parsed.push(address);
            }
        }
        if parsed.len() > 8 {
            return Err(PyValueError::new_err("at most 8 addresses"));
        }
        self.run(|core| core.set_addresses(parsed))
    }

    #[pyo3(signature = (public_key, allowed_ips, *, endpoint = None, keepalive = None, preshared_key = None))]
    fn set_peer(
        &mut self,
        public_key: &[u8],
        allowed_ips: Vec<String>,
        endpoint: Option<Bound<'_, Endpoint>>,
        keepalive: Option<u16>,
        preshared_key: Option<&[u8]>,
    ) -> PyResult<()> {
        let public_key = key("public_key", public_key)?;
        if public_key == self.core.wg.public_key() || public_key == [0; 32] {
            return Err(PyValueError::new_err("a peer cannot have this public key"));
        }
        let prefixes: Result<Vec<Prefix>, String> = allowed_ips.iter().map(|text| Prefix::parse(text)).collect();
        let prefixes = prefixes.map_err(PyValueError::new_err)?;
        let config = PeerConfig {
            key: public_key,
            endpoint: endpoint.map(|endpoint| Path::udp(endpoint.get().0)),
            keepalive,
            preshared_key: preshared_key.map(|bytes| key("preshared_key", bytes).map(Zeroizing::new)).transpose()?,
        };
        if self.run(|core| core.set_peer(config, &prefixes))? {
            Ok(())
        } else {
            Err(PyOSError::new_err("the operating system gave no random numbers"))
        }
    }

    fn remove_peer(&mut self, public_key: &[u8]) -> PyResult<bool> {
        let public_key = key("public_key", public_key)?;
        self.run(|core| core.remove_peer(&public_key))
    }

    fn peers(slf: &Bound<'_, Self>) -> PyResult<Vec<python::PeerState>> {
        let py = slf.py();
        let mut engine = slf.try_borrow_mut()?;
        engine
            .run(|core| core.wg.peers().map(|(id, _)| python::PeerState::of(py, core, id)).collect::<PyResult<_>>())?
    }

    fn peer(&mut self, py: Python<'_>, public_key: &[u8]) -> PyResult<Option<python::PeerState>> {
        let public_key = key("public_key", public_key)?;
        self.run(|core| core.wg.find(&public_key).map(|id| python::PeerState::of(py, core, id)).transpose())?
    }

    fn whois<'py>(&self, py: Python<'py>, address: &str) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let address = parse_address(address).map_err(PyValueError::new_err)?;
        Ok(self.core.whois(address).map(|key| PyBytes::new(py, &key)))
    }

    fn handshake(&mut self, public_key: &[u8]) -> PyResult<bool> {
        let public_key = key("public_key", public_key)?;
        self.run(|core| core.handshake(&public_key))
    }

    fn pin(&mut self, public_key: &[u8], path: &Bound<'_, PyAny>) -> PyResult<bool> {
        let public_key = key("public_key", public_key)?;
        let path = endpoint::path(path)?;
        self.run(|core| core.pin(&public_key, path))
    }

    fn unpin(&mut self, public_key: &[u8]) -> PyResult<bool> {
        let public_key = key("public_key", public_key)?;
        self.run(|core| core.unpin(&public_key))
    }

    fn reset_session(&mut self, public_key: &[u8]) -> PyResult<bool> {
        let public_key = key("public_key", public_key)?;
        self.run(|core| core.reset_session(&public_key))
    }

    #[pyo3(signature = (rules, *, denied = Vec::new()))]
    fn set_inbound(&mut self, rules: Vec<RuleTuple>, denied: Vec<RuleTuple>) -> PyResult<()> {
        let parse = |rules: &[RuleTuple]| -> PyResult<Vec<Rule>> {
            let parsed: Result<Vec<Rule>, String> = rules
                .iter()
                .map(|(source, protocol, first, last)| Rule::parse(source, *protocol, *first, *last))
                .collect();
            parsed.map_err(PyValueError::new_err)
        };
        let filter = Filter::new(&parse(&rules)?, &parse(&denied)?);
        self.run(|core| core.set_filter(filter))
    }

    #[pyo3(signature = (port, backlog = 256))]
    fn listen(&mut self, port: u16, backlog: usize) -> PyResult<()> {
        if port == 0 {
            return Err(PyValueError::new_err("port must be 1..65535"));
        }
        self.run(|core| core.tcp.listen(port, backlog))
    }

    fn unlisten(&mut self, port: u16) -> PyResult<bool> {
        self.run(|core| core.tcp.unlisten(port))
    }

    fn connect(&mut self, address: &str, port: u16, now: f64) -> PyResult<ConnId> {
        let target = parse_address(address).map_err(PyValueError::new_err)?;
        if port == 0 {
            return Err(PyValueError::new_err("port must be 1..65535"));
        }
        self.run_at(now, |core| core.connect(target, port))?.map_err(|error| unreachable(&error, address))
    }

    fn udp_listen(&mut self, port: u16) -> PyResult<()> {
        if port == 0 {
            return Err(PyValueError::new_err("port must be 1..65535"));
        }
        if self.run(|core| core.udp.listen(port))? {
            Ok(())
        } else {
            Err(LimitReached::new_err("too many sockets"))
        }
    }

    fn udp_connect(&mut self, address: &str, port: u16) -> PyResult<(UdpId, (String, u16))> {
        let target = parse_address(address).map_err(PyValueError::new_err)?;
        if port == 0 {
            return Err(PyValueError::new_err("port must be 1..65535"));
        }
        let id = self.run(|core| core.udp_connect(target, port))?.map_err(|error| unreachable(&error, address))?;
        let local =
            self.core.udp.flow(id).map_or_else(Default::default, |flow| (flow.local.to_string(), flow.local_port));
        Ok((id, local))
    }

    #[pyo3(signature = (socket, data, remote = None))]
    fn udp_send(&mut self, socket: UdpId, data: &Bound<'_, PyAny>, remote: Option<(String, u16)>) -> PyResult<bool> {
        let to = match &remote {
            Some((_, 0)) => return Err(PyValueError::new_err("port must be 1..65535")),
            Some((address, port)) => Some((parse_address(address).map_err(PyValueError::new_err)?, *port)),
            None => None,
        };
        let name = remote.map_or_else(String::new, |(address, _)| address);
        with_bytes(data, LONGEST, |bytes| self.run(|core| core.udp_send(socket, to, bytes)))??.map_err(|error| {
            match error {
                SendError::NoRoute => unreachable(&ConnectError::NoRoute, &name),
                SendError::NoEndpoint => unreachable(&ConnectError::NoEndpoint, &name),
                SendError::TooLong => PyValueError::new_err("the datagram does not fit into a packet"),
            }
        })
    }

    fn udp_close(&mut self, socket: UdpId) -> PyResult<bool> {
        self.run(|core| core.udp.close(socket))
    }

    #[pyo3(signature = (conn, data, start = 0))]
    fn write(&mut self, conn: ConnId, data: &Bound<'_, PyAny>, start: usize) -> PyResult<usize> {
        // One byte more than fits, so that a partial write shows.
        let most = (self.core.tcp.limits.send_buffer + 1).saturating_add(start);
        with_bytes(data, most, |bytes| {
            let bytes = bytes.get(start..).unwrap_or_default();
            self.run(|core| core.tcp.write(conn, bytes, core.shared.now()))
        })?
    }

    fn write_eof(&mut self, conn: ConnId) -> PyResult<()> {
        self.run(|core| core.tcp.write_eof(conn, core.shared.now()))
    }

    fn close(&mut self, conn: ConnId) -> PyResult<()> {
        self.run(|core| core.tcp.close(conn, core.shared.now()))
    }

    fn abort(&mut self, conn: ConnId) -> PyResult<()> {
        self.run(|core| core.tcp.abort(conn, core.shared.now()))
    }

    fn pause_reading(&mut self, conn: ConnId) -> PyResult<()> {
        self.run(|core| core.tcp.pause(conn, true))
    }

    fn resume_reading(&mut self, conn: ConnId) -> PyResult<()> {
        self.run(|core| core.tcp.pause(conn, false))
    }

    fn unsent(&mut self, conn: ConnId) -> PyResult<usize> {
        self.run(|core| core.tcp.unsent(conn))
    }

    fn receive(&mut self, datagram: &Bound<'_, PyAny>, source: &Bound<'_, PyAny>, now: f64) -> PyResult<()> {
        let from = path(source)?;
        with_bytes(datagram, LONGEST + 1, |bytes| self.run_at(now, |core| core.receive(bytes, from)))?
    }

    fn receive_all(&mut self, datagrams: Vec<Bound<'_, PyBytes>>, source: &Bound<'_, PyAny>, now: f64) -> PyResult<()> {
        let from = path(source)?;
        self.run_at(now, |core| {
            for datagram in datagrams {
                core.receive(datagram.as_bytes(), from);
            }
        })
    }

    fn advance(&mut self, now: f64) -> PyResult<f64> {
        self.run_at(now, Core::advance)?;
        Ok(self.deadline_seconds())
    }

    // Lists and dictionaries are made after the borrow: python_events.rs gives the reason.

    fn transmits<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyList>> {
        let taken: Vec<_> = {
            let outgoing = &mut slf.try_borrow_mut()?.core.shared.outgoing;
            let datagrams = (0..outgoing.len()).filter_map(|index| outgoing.get(index));
            let taken = datagrams.map(|(datagram, to)| (PyBytes::new(slf.py(), datagram), Endpoint(to))).collect();
            outgoing.sent(outgoing.len());
            taken
        };
        PyList::new(slf.py(), taken)
    }

    fn carried<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyList>> {
        let taken = slf.try_borrow_mut()?.core.shared.outgoing.take_carried();
        python::carried(slf.py(), &taken)
    }

    fn strays<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyList>> {
        let taken = slf.try_borrow_mut()?.core.shared.strays.take();
        python::strays(slf.py(), &taken)
    }

    fn aggregate(&mut self, fd: i32) -> bool {
        self.socket.aggregate(fd)
    }

    #[pyo3(signature = (fd, now, budget = 256))]
    fn pump(&mut self, fd: i32, now: f64, budget: usize) -> PyResult<python::PumpResult> {
        let pumped = self.run_with(|engine| {
            engine.core.shared.clock.set(now);
            overlay_udp::pump(&mut engine.core, &mut engine.socket, fd, budget)
        })??;
        Ok(python::PumpResult {
            received: pumped.received,
            sent: pumped.sent,
            more: pumped.more,
            blocked: pumped.blocked,
            deadline: self.deadline_seconds(),
        })
    }

    #[pyo3(signature = (fd, now, budget = 256))]
    fn turn(slf: &Bound<'_, Self>, fd: i32, now: f64, budget: usize) -> PyResult<turn::Turn> {
        turn::turn(slf, fd, now, budget)
    }

    fn events<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyList>> {
        let mut events = python::Collected::new(slf.py());
        slf.try_borrow_mut()?.run(|core| core.events(&mut events))??;
        events.into_list()
    }

    fn counters<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyDict>> {
        let mut values: Vec<(&str, u64)> = Vec::new();
        {
            let core = &slf.try_borrow()?.core;
            core.shared.counters.each(|name, value| values.push((name, value)));
            values.push(("connections", core.tcp.count() as u64));
            values.push(("buffer_bytes", core.tcp.buffer_bytes() as u64));
            values.push(("half_open", core.tcp.half_open() as u64));
            values.push(("udp_sockets", core.udp.sockets() as u64));
            values.push(("udp_asked", core.udp.asked() as u64));
        }
        values.into_py_dict(slf.py())
    }
}

fn unreachable(error: &ConnectError, address: &str) -> PyErr {
    match error {
        ConnectError::NoRoute => NoRoute::new_err(format!("no route to {address}")),
        ConnectError::NoEndpoint => NoEndpoint::new_err(format!("the endpoint of the peer of {address} is unknown")),
        ConnectError::Limit => LimitReached::new_err("too many connections"),
    }
}

fn key(name: &str, bytes: &[u8]) -> PyResult<Key> {
    bytes.try_into().map_err(|_| PyValueError::new_err(format!("{name} must be 32 bytes, not {}", bytes.len())))
}

/// Lend the bytes of a bytes-like object: `bytes` without a copy, and of mutable objects a copy of at most `most`
/// bytes.
fn with_bytes<R>(object: &Bound<'_, PyAny>, most: usize, work: impl FnOnce(&[u8]) -> R) -> PyResult<R> {
    if let Ok(bytes) = object.downcast::<PyBytes>() {
        return Ok(work(bytes.as_bytes()));
    }
    let wrong = || PyTypeError::new_err("a bytes-like object is needed");
    let buffer = PyBuffer::<u8>::get(object).map_err(|_| wrong())?;
    let cells = buffer.as_slice(object.py()).ok_or_else(wrong)?;
    let copy: Vec<u8> = cells.iter().take(most).map(ReadOnlyCell::get).collect();
    Ok(work(&copy))
}

#[pymodule]
#[pyo3(name = "engine")]
fn python_module(py: Python<'_>, module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Engine>()?;
    module.add_class::<Endpoint>()?;
    module.add_class::<BufferBudget>()?;
    python::register(module)?;
    module.add_class::<turn::Turn>()?;
    module.add("EngineError", py.get_type::<EngineError>())?;
    module.add("NoRoute", py.get_type::<NoRoute>())?;
    module.add("NoEndpoint", py.get_type::<NoEndpoint>())?;
    module.add("LimitReached", py.get_type::<LimitReached>())?;
    python::register_aliases(module)
}

//! The Python module of the engine; engine.pyi documents it.

mod arrivals;
mod clock;
mod conn;
mod counters;
mod engine;
mod entropy;
mod events;
mod filter;
mod inbound;
mod link;
mod outgoing;
mod packet;
mod peer;
mod prefix;
mod python_events;
mod shared;
mod tcp;
mod udp_io;
mod wireguard;

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::panic::{catch_unwind, AssertUnwindSafe};

use pyo3::buffer::{PyBuffer, ReadOnlyCell};
use pyo3::create_exception;
use pyo3::exceptions::{PyConnectionError, PyOSError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

use crate::clock::SECOND;
use crate::conn::Limits;
use crate::engine::{Engine as Core, Options};
use crate::entropy::Entropy;
use crate::events::{ConnId, Key};
use crate::filter::{Filter, Rule};
use crate::prefix::{canonical, parse_address, Prefix};
use crate::python_events as python;
use crate::tcp::ConnectError;
use crate::udp_io::Batch;
use crate::wireguard::{PeerConfig, LONGEST};

create_exception!(netbird_overlay.engine, EngineError, PyRuntimeError);
create_exception!(netbird_overlay.engine, NoRoute, PyConnectionError);
create_exception!(netbird_overlay.engine, NoEndpoint, PyConnectionError);
create_exception!(netbird_overlay.engine, LimitReached, PyConnectionError);

type RuleTuple = (String, i64, i64, i64);

#[pyclass(module = "netbird_overlay.engine")]
struct Engine {
    core: Core,
    batch: Option<Batch>,
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
        private_key, *, mtu = 1280, receive_buffer = 131_072, send_buffer = 131_072, max_connections = 4096,
        reserved_for_dials = 0, fair = false, max_buffer_bytes = 1 << 30, connect_timeout = 60.0, handshakes_per_second = 100, seed = None
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
        connect_timeout: f64,
        handshakes_per_second: u64,
        seed: Option<&[u8]>,
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
            private_key: key("private_key", private_key)?,
            mtu: within("mtu", mtu, 576, 8192)?,
            limits,
            handshakes_per_second,
            entropy: Entropy::new(seed),
        });
        Ok(Engine { core, batch: None, broken: false })
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
        self.run(|core| core.tcp.set_addresses(&core.shared, parsed))
    }

    #[pyo3(signature = (public_key, allowed_ips, *, endpoint = None, keepalive = None, preshared_key = None))]
    fn set_peer(
        &mut self,
        public_key: &[u8],
        allowed_ips: Vec<String>,
        endpoint: Option<Bound<'_, PyTuple>>,
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
            endpoint: endpoint.as_ref().map(socket_address).transpose()?,
            keepalive,
            preshared_key: preshared_key.map(|bytes| key("preshared_key", bytes)).transpose()?,
        };
        if self.run(|core| core.set_peer(&config, &prefixes))? {
            Ok(())
        } else {
            Err(PyOSError::new_err("the operating system gave no random numbers"))
        }
    }

    fn remove_peer(&mut self, public_key: &[u8]) -> PyResult<bool> {
        let public_key = key("public_key", public_key)?;
        self.run(|core| core.remove_peer(&public_key))
    }

    fn peers(&mut self, py: Python<'_>) -> PyResult<Vec<python::PeerState>> {
        self.run(|core| core.wg.peers().map(|(id, _)| python::PeerState::of(py, core, id)).collect())
    }

    fn peer(&mut self, py: Python<'_>, public_key: &[u8]) -> PyResult<Option<python::PeerState>> {
        let public_key = key("public_key", public_key)?;
        self.run(|core| core.wg.find(&public_key).map(|id| python::PeerState::of(py, core, id)))
    }

    fn whois<'py>(&self, py: Python<'py>, address: &str) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let address = parse_address(address).map_err(PyValueError::new_err)?;
        Ok(self.core.whois(address).map(|key| PyBytes::new(py, &key)))
    }

    fn handshake(&mut self, public_key: &[u8]) -> PyResult<bool> {
        let public_key = key("public_key", public_key)?;
        self.run(|core| core.handshake(&public_key))
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
        let filter = Filter { allowed: parse(&rules)?, denied: parse(&denied)? };
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
        self.run_at(now, |core| core.connect(target, port))?.map_err(|error| match error {
            ConnectError::NoRoute => NoRoute::new_err(format!("no route to {address}")),
            ConnectError::NoEndpoint => NoEndpoint::new_err(format!("nobody knows yet where the peer of {address} is")),
            ConnectError::Limit => LimitReached::new_err("too many connections"),
        })
    }

    fn write(&mut self, conn: ConnId, data: &Bound<'_, PyAny>) -> PyResult<usize> {
        // One byte more than fits, so that a partial write shows.
        let most = self.core.tcp.limits.send_buffer + 1;
        with_bytes(data, most, |bytes| self.run(|core| core.tcp.write(conn, bytes, core.shared.now())))?
    }

    fn write_eof(&mut self, conn: ConnId) -> PyResult<()> {
        self.run(|core| core.tcp.write_eof(conn))
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

    fn receive(&mut self, datagram: &Bound<'_, PyAny>, endpoint: &Bound<'_, PyTuple>, now: f64) -> PyResult<()> {
        let from = socket_address(endpoint)?;
        with_bytes(datagram, LONGEST + 1, |bytes| self.run_at(now, |core| core.receive(bytes, from)))?
    }

    fn advance(&mut self, now: f64) -> PyResult<f64> {
        self.run_at(now, Core::advance)?;
        Ok(self.deadline_seconds())
    }

    fn transmits<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let outgoing = &mut self.core.shared.outgoing;
        let list = PyList::empty(py);
        for index in 0..outgoing.len() {
            if let Some((datagram, to)) = outgoing.get(index) {
                list.append((PyBytes::new(py, datagram), python::endpoint(py, to)?))?;
            }
        }
        outgoing.sent(outgoing.len());
        Ok(list)
    }

    fn aggregate(&mut self, fd: i32) -> bool {
        let possible = udp_io::aggregate(fd);
        if possible {
            self.batch = Some(Batch::of_runs());
        }
        possible
    }

    #[pyo3(signature = (fd, now, budget = 256))]
    fn pump(&mut self, fd: i32, now: f64, budget: usize) -> PyResult<python::PumpResult> {
        let pumped = self.run_with(|engine| {
            engine.core.shared.clock.set(now);
            let mtu = engine.core.shared.mtu;
            let batch = engine.batch.get_or_insert_with(|| Batch::new(mtu));
            udp_io::pump(&mut engine.core, batch, fd, budget)
        })??;
        Ok(python::PumpResult {
            received: pumped.received,
            sent: pumped.sent,
            more: pumped.more,
            blocked: pumped.blocked,
            deadline: self.deadline_seconds(),
        })
    }

    fn events<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let mut sink = python::ListSink { py, list: PyList::empty(py) };
        self.run(|core| core.events(&mut sink))??;
        Ok(sink.list)
    }

    fn counters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counters = PyDict::new(py);
        let mut result = Ok(());
        self.core.shared.counters.each(|name, value| {
            if result.is_ok() {
                result = counters.set_item(name, value);
            }
        });
        result?;
        let tcp = &self.core.tcp;
        counters.set_item("connections", tcp.count())?;
        counters.set_item("buffer_bytes", tcp.count() * (tcp.limits.receive_buffer + tcp.limits.send_buffer))?;
        counters.set_item("half_open", tcp.half_open())?;
        Ok(counters)
    }
}

fn key(name: &str, bytes: &[u8]) -> PyResult<Key> {
    bytes.try_into().map_err(|_| PyValueError::new_err(format!("{name} must be 32 bytes, not {}", bytes.len())))
}

/// Convert asyncio's form of an address: `(host, port)`, or with flow and scope for IPv6.
fn socket_address(address: &Bound<'_, PyTuple>) -> PyResult<SocketAddr> {
    if address.len() < 2 {
        return Err(PyValueError::new_err("an endpoint is (host, port)"));
    }
    let host: String = address.get_item(0)?.extract()?;
    let port: u16 = address.get_item(1)?.extract()?;
    let host = host.split_once('%').map_or(host.as_str(), |(host, _)| host);
    let ip = host.parse::<IpAddr>().map_err(|_| PyValueError::new_err(format!("not an IP address: {host:?}")))?;
    Ok(match canonical(ip) {
        IpAddr::V4(v4) => SocketAddr::new(IpAddr::V4(v4), port),
        IpAddr::V6(v6) => {
            let scope = if address.len() > 3 { address.get_item(3)?.extract()? } else { 0 };
            SocketAddr::V6(SocketAddrV6::new(v6, port, 0, scope))
        }
    })
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
    python::register(module)?;
    module.add("EngineError", py.get_type::<EngineError>())?;
    module.add("NoRoute", py.get_type::<NoRoute>())?;
    module.add("NoEndpoint", py.get_type::<NoEndpoint>())?;
    module.add("LimitReached", py.get_type::<LimitReached>())?;
    python::register_aliases(module)
}

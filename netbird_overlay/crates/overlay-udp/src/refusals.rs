//! Refusals of the kernel to send, remembered for a while: runs of datagrams, and own addresses.

use std::collections::HashMap;
use std::net::IpAddr;

use overlay_core::time::{Micros, SECOND};

/// Time without another try: a route or an address may have changed meanwhile.
const LIFE: Micros = 60 * SECOND;
/// Maximum number of addresses in each table.
const MOST: usize = 1024;

#[derive(Default)]
pub struct Refusals {
    runs: HashMap<IpAddr, Micros>,
    all_runs_until: Micros,
    locals: HashMap<IpAddr, Micros>,
}

impl Refusals {
    /// The kernel, or the device, sends no runs at all.
    pub fn refuse_all_runs(&mut self, now: Micros) {
        self.all_runs_until = now + LIFE;
    }

    /// No runs to this destination: its path has a smaller MTU, for example.
    pub fn refuse_runs(&mut self, to: IpAddr, now: Micros) {
        if !note(&mut self.runs, to, now) {
            self.refuse_all_runs(now);
        }
    }

    pub fn allows_runs(&self, to: IpAddr, now: Micros) -> bool {
        now >= self.all_runs_until && self.runs.get(&to).is_none_or(|until| now >= *until)
    }

    /// The address is no longer our own, or cannot reach a destination.
    pub fn refuse_local(&mut self, local: IpAddr, now: Micros) {
        if !note(&mut self.locals, local, now) {
            self.locals.clear();
            note(&mut self.locals, local, now);
        }
    }

    pub fn usable_local(&self, local: Option<IpAddr>, now: Micros) -> Option<IpAddr> {
        local.filter(|local| self.locals.get(local).is_none_or(|until| now >= *until))
    }
}

/// False if the table is full.
fn note(table: &mut HashMap<IpAddr, Micros>, address: IpAddr, now: Micros) -> bool {
    if table.len() >= MOST {
        table.retain(|_, until| now < *until);
    }
    let room = table.len() < MOST;
    if room {
        table.insert(address, now + LIFE);
    }
    room
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_without_runs_costs_no_other_its_runs() {
        let (a, b): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let mut refusals = Refusals::default();
        refusals.refuse_runs(a, 5);
        assert!(!refusals.allows_runs(a, 6) && refusals.allows_runs(b, 6));
        assert!(refusals.allows_runs(a, 5 + LIFE));
        refusals.refuse_all_runs(100);
        assert!(!refusals.allows_runs(b, 101) && refusals.allows_runs(b, 100 + LIFE));
    }

    #[test]
    fn the_tables_are_bounded() {
        let mut refusals = Refusals::default();
        for number in 0..5000u32 {
            let address = IpAddr::from(number.to_be_bytes());
            refusals.refuse_runs(address, 1);
            refusals.refuse_local(address, 1);
            assert_eq!(refusals.usable_local(Some(address), 2), None);
            assert!(!refusals.allows_runs(address, 2));
        }
        assert!(refusals.runs.len() <= MOST && refusals.locals.len() <= MOST);
    }
}

//! Counters of processed and dropped packets. Input from outside never causes an error, only a count.

macro_rules! counters {
    ($($name:ident),* $(,)?) => {
        /// Totals since the engine was made.
        #[derive(Default)]
        pub struct Counters {
            $(pub $name: u64,)*
        }

        impl Counters {
            pub fn each(&self, mut visit: impl FnMut(&'static str, u64)) {
                $(visit(stringify!($name), self.$name);)*
            }
        }
    };
}

counters!(
    // Datagrams dropped before or in WireGuard.
    malformed,
    bad_mac,
    unknown_key,
    unknown_session,
    decrypt_failed,
    replayed,
    replayed_handshake,
    rate_limited,
    strays_dropped,
    // Inner packets dropped after decryption.
    bad_source,
    bad_destination,
    bad_packet,
    unsupported,
    denied_inbound,
    not_listening,
    unmatched,
    backlog_full,
    half_open_evicted,
    udp_dropped,
    limit_reached,
    share_reached,
    internal_error,
    // Datagrams not sent.
    no_endpoint,
    queue_full,
    send_failed,
    // Work done.
    handshakes,
    datagrams_in,
    datagrams_out,
    bytes_in,
    bytes_out,
    accepted,
    connected,
);

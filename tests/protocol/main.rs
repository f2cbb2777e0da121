//! The protocol without sockets: bytes in, exact effects out, time moved by hand.
#![expect(clippy::unwrap_used, reason = "a test that cannot unwrap has failed")]

mod harness;

mod allocate;
mod authentication;
mod authorization;
mod binding;
mod browsers;
mod channel;
mod channel_paths;
mod classic;
mod clocks;
mod credentials;
mod data;
mod data_connections;
mod dual;
mod failure;
mod icmp;
mod indication_paths;
mod lifecycle;
mod messages;
mod mobility;
mod mobility_tickets;
mod model;
mod nat_behavior;
mod neighbours;
mod noise;
mod peers;
mod permission;
mod quota;
mod rates;
mod redirect;
mod refresh;
mod relay_sockets;
mod rerouted;
mod reservation;
mod sessions;
mod strangers;
mod tcp_allocations;
mod tcp_limits;
mod third_party;

//! Mobility tickets (RFC 8016): only the one that was given last leads to its allocation, and only its user uses it.

use arbitrary::{Arbitrary, Unstructured};
use ferryd::stun::{AttributeType, Method};

use crate::harness::{BOB, Client, PEER, World, assert_no_leak, secs};

const ADDRESSES: [&str; 4] = ["198.51.100.1:1000", "203.0.113.9:2000", "203.0.113.77:3000", "[2001:db8:7::1]:1000"];

#[derive(Debug, Arbitrary)]
enum Step<'a> {
    /// A Refresh with the last ticket, changed here and there.
    Refresh {
        from: u8,
        worker: u8,
        bob: bool,
        lifetime: Option<u16>,
        change: &'a [u8],
    },
    /// A Refresh with something else.
    Forge {
        from: u8,
        worker: u8,
        ticket: &'a [u8],
    },
    /// Data from one of the addresses.
    Speak {
        from: u8,
    },
    Wait(u16),
}

pub fn run(bytes: &[u8]) {
    let mut world = World::with(|setup| {
        (setup.turn.port_min, setup.turn.port_max) = (50_000, 50_063);
        (setup.turn.mobility, setup.workers) = (true, 3);
    });
    let mut home = Client::new(ADDRESSES[0]);
    let reply = home.allocate_with(&mut world, |builder| _ = builder.attribute(AttributeType::MOBILITY_TICKET, &[]));
    home.bind(&mut world, 0x4000, PEER);
    let mut ticket = reply.value(AttributeType::MOBILITY_TICKET).expect("a ticket");
    let mut input = Unstructured::new(bytes);
    let steps: Vec<Step<'_>> = input.arbitrary_iter().into_iter().flatten().flatten().take(24).collect();
    for step in steps {
        match step {
            Step::Refresh { from, worker, bob, lifetime, change } => {
                let mut client = client(from, worker);
                if bob {
                    client = client.user("bob", BOB);
                }
                let mut shown = ticket.clone();
                shown.iter_mut().zip(change).for_each(|(byte, change)| *byte ^= change);
                let reply = refresh(&mut world, &mut client, &shown, lifetime);
                if reply.0.is_ok() {
                    assert!(shown == ticket && !bob, "a ticket that was not given, or another user's");
                }
                if let Some(new) = reply.1 {
                    assert_ne!(new, ticket);
                    ticket = new;
                }
            }
            Step::Forge { from, worker, ticket: forged } => {
                let mut client = client(from, worker);
                let reply = refresh(&mut world, &mut client, forged, None);
                assert!(reply.0.is_err() || forged == ticket);
                if let Some(new) = reply.1 {
                    ticket = new;
                }
            }
            Step::Speak { from } => {
                let client = client(from, 0);
                client.channel_data(&mut world, 0x4000, b"data");
            }
            Step::Wait(seconds) => world.advance(secs(seconds.into())),
        }
        assert!(world.workers.iter().map(|worker| worker.allocations()).sum::<usize>() <= 1);
        assert!(world.shared.mobility.usage().0 <= 2);
    }
    world.advance(secs(5000));
    assert_no_leak(&world);
}

fn client(from: u8, worker: u8) -> Client {
    Client::new(ADDRESSES[usize::from(from) % ADDRESSES.len()]).on_worker(usize::from(worker) % 3)
}

/// The result of a Refresh, and the ticket of its answer.
fn refresh(
    world: &mut World,
    client: &mut Client,
    ticket: &[u8],
    lifetime: Option<u16>,
) -> (Result<(), u16>, Option<Vec<u8>>) {
    world.inbox(&client.at);
    let reply = client.request(world, Method::Refresh, |builder| {
        builder.attribute(AttributeType::MOBILITY_TICKET, ticket);
        if let Some(lifetime) = lifetime {
            builder.u32(AttributeType::LIFETIME, lifetime.into());
        }
    });
    let new = reply.value(AttributeType::MOBILITY_TICKET).filter(|new| !new.is_empty());
    (reply.result(), new)
}

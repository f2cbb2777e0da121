/* The maps, and what the daemon and the programs share in them (`flow.rs`, `programs.rs`). */
#pragma once

#include "kernel.h"

/* Which end of a flow a packet has come to. In a client's key `channel` is the channel's number (0x4000 and up) or
 * INDICATIONS, in a peer's one of the others. */
enum {
	FROM_NETWORK = 0,
	/* From a relayed address of this server: found from within alone, never by what an interface receives. */
	FROM_RELAY = 1,
	/* The client has no channel to the peer: Send and Data indications. */
	INDICATIONS = 2,
};

/* Addresses of IPv4 are in the first word. Everything is in network order but `channel` and `is_v6`.
 *
 * The entry of a client without a channel has another key, as all of a client's 5-tuple and the peer do not fit: the peer
 * as `local`, the client as `remote`, the server's port as `channel`, and NAMES_PEER in `is_v6`. What it lacks, the server's
 * address, is compared with the flow's. */
struct key {
	u32 local[4];
	u32 remote[4];
	u16 local_port;
	u16 remote_port;
	u16 channel;
	u16 is_v6;
};

/* Beside whether the client's address is IPv6 (1) and the peer's is (2). */
enum { NAMES_PEER = 4 };

/* Never changes while an entry leads to it, nor for a grace period afterwards. */
struct flow {
	/* The client's 5-tuple, and the channel if it has one. */
	struct key client;
	/* The relayed address and the peer. */
	struct key peer;
	/* The other allocation's `peer`, where the peer is a relayed address of this server. */
	struct key hop;
	u32 hops;
	/* One more than the index of the allocation's `meters`; 0 where nothing is metered. */
	u32 meter;
};

/* Each field is written by one store at any time: the first three by the daemon, the others by the programs. */
struct state {
	/* CLOCK_MONOTONIC in nanoseconds: the earliest of allocation, permission and channel, where there is one. */
	u64 deadline;
	/* Indices of `ways`; 0 is none. */
	u32 to_peer;
	u32 to_client;
	/* Until then what comes from the client, or from the peer, is carried; 0 until a packet from there has been seen. */
	u64 from_client;
	u64 from_peer;
};

/* Token buckets of one direction, as instants (CLOCK_MONOTONIC in nanoseconds) at which they are full again. */
struct buckets {
	u64 packets;
	u64 bytes;
};

/* What an allocation may carry, taken by programs and by the daemon's sockets alike; rates of 0 are no limit. */
struct meter {
	struct buckets to_peers;
	struct buckets to_client;
	u32 packets_per_second;
	u32 bytes_per_second;
	/* A cache line each. */
	u64 unused[3];
};

/* A way out of this host, never changed while a flow uses it. */
struct way {
	u32 ifindex;
	u32 mtu;
	u8 to[6];
	u8 from[6];
	/* XDP_TX is not for this interface. */
	u32 redirects;
	/* Spares tc the route. */
	struct next_hop next_hop;
};

/* Application data of a flow, payload bytes alone. */
struct counters {
	u64 packets_to_peer;
	u64 bytes_to_peer;
	u64 packets_to_client;
	u64 bytes_to_client;
};

/* What became of packets of known flows; the daemon knows these numbers. */
enum total {
	FORWARDED_TO_PEER,
	FORWARDED_TO_CLIENT,
	PASSED_EXPIRED,
	PASSED_LENGTH,
	PASSED_CHECKSUM,
	PASSED_NO_WAY,
	PASSED_TOO_LONG,
	PASSED_NO_ROOM,
	PASSED_UNPROVEN,
	PASSED_SAMPLE,
	PASSED_CONTENDED,
	DROPPED_HOP_LIMIT,
	DROPPED_FAILED,
	DROPPED_RATE,
	TOTALS,
};

/* Sized by the loader. */
SECTION("maps") struct map entries = { MAP_HASH, sizeof(struct key), 8, 1, 0 };
SECTION("maps") struct map flows = { MAP_ARRAY, 4, sizeof(struct flow), 1, 0 };
SECTION("maps") struct map states = { MAP_ARRAY, 4, sizeof(struct state), 1, MAP_MMAPABLE };
SECTION("maps") struct map meters = { MAP_ARRAY, 4, sizeof(struct meter), 1, MAP_MMAPABLE };
SECTION("maps") struct map ways = { MAP_ARRAY, 4, sizeof(struct way), 1, 0 };
SECTION("maps") struct map counts = { MAP_PERCPU_ARRAY, 4, sizeof(struct counters), 1, 0 };
SECTION("maps") struct map totals = { MAP_PERCPU_ARRAY, 4, 8, TOTALS, 0 };

/* Room for a payload that has to be moved within its packet. */
enum { SCRATCH = 2048 };
SECTION("maps") struct map scratch = { MAP_PERCPU_ARRAY, 4, SCRATCH, 1, 0 };

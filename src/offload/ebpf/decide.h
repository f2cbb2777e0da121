/* Deciding: what becomes of a packet, before it is touched. */
#pragma once

#include "parse.h"

/* What becomes of a packet: everything about it, before it is touched. */
struct plan {
	/* Bytes of the payload that are to go, in front of the data and behind it, and their sum. */
	u32 strips;
	u32 trims;
	u64 stripped;
	/* Bytes to be put in front of the data, and of padding behind it. */
	u32 prefix;
	u32 pads;
	/* Bytes of application data. */
	u32 len;
	u32 is_v6;
	const struct way *way;
	/* Source and destination: of a flow. */
	const struct key *out;
	/* Whom a Data indication says it is from. */
	const struct key *from;
	struct counters *to_peer;
	struct counters *to_client;
	/* `meter` of the flows that the packet goes through. */
	u32 meter_to_peer;
	u32 meter_to_client;
};

enum verdict { PASS, DROP, FORWARD };

INLINE void count(u32 total)
{
	u64 *number = map_lookup(&totals, &total);
	if (number)
		*number += 1;
}

INLINE int pass(u32 total)
{
	count(total);
	return PASS;
}

INLINE int same(const struct key *one, const struct key *other)
{
	const u64 *a = (const u64 *)one, *b = (const u64 *)other;
	return !((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) | (a[4] ^ b[4]));
}

struct found {
	struct flow *flow;
	struct state *state;
	struct counters *counters;
};

INLINE int find(struct found *found, const struct key *key)
{
	u64 *entry = map_lookup(&entries, key);
	if (!entry)
		return -1;
	u32 index = *(volatile u64 *)entry;
	found->flow = map_lookup(&flows, &index);
	found->state = map_lookup(&states, &index);
	found->counters = map_lookup(&counts, &index);
	return found->flow && found->state && found->counters ? 0 : -1;
}

INLINE int has_expired(const struct state *state)
{
	return *(volatile u64 *)&state->deadline <= coarse_now();
}

INLINE int plan_way(struct plan *plan, u32 index)
{
	plan->way = map_lookup(&ways, &index);
	return index && plan->way && plan->way->ifindex ? 0 : -1;
}

/* conntrack keeps a UDP flow for 30 s behind its last packet, or longer. */
enum { SAMPLE_INTERVAL_SECONDS = 15 };

/* Whether a packet from one end goes by the sockets. The first ones do: the host's own NAT may give packets other
 * addresses on the wire, so that nothing is sent to an end from which none has come with those that the daemon knows. Later
 * one does now and then, for whatever in the host keeps state of a flow that it sees. */
INLINE int goes_by_sockets(u64 *from_here, const u64 *from_there)
{
	u64 now = coarse_now();
	int is_proven = *(const volatile u64 *)from_there != 0;
	if (is_proven && now < *(volatile u64 *)from_here)
		return 0;
	*(volatile u64 *)from_here = now + SAMPLE_INTERVAL_SECONDS * 1000000000ull;
	count(is_proven ? PASSED_SAMPLE : PASSED_UNPROVEN);
	return 1;
}

/* The bytes in front of data to a client. */
enum { OF_CHANNEL = 4, OF_DATA4 = 36, OF_DATA6 = 48 };

/* From a relayed address or a peer to the client that has a channel or a permission for it. */
INLINE int plan_to_client(struct plan *plan, const struct found *found)
{
	const struct key *client = &found->flow->client;
	if (has_expired(found->state))
		return pass(PASSED_EXPIRED);
	plan->prefix = OF_CHANNEL;
	if (client->channel == INDICATIONS) {
		plan->from = &found->flow->peer;
		plan->prefix = plan->from->is_v6 ? OF_DATA6 : OF_DATA4;
		plan->pads = -plan->len & 3;
	}
	plan->out = client;
	plan->to_client = found->counters;
	plan->meter_to_client = found->flow->meter;
	if (plan_way(plan, *(volatile u32 *)&found->state->to_client))
		return pass(PASSED_NO_WAY);
	return FORWARD;
}

INLINE int plan_from_client(struct plan *plan, const struct packet *packet, const struct found *found)
{
	if (has_expired(found->state))
		return pass(PASSED_EXPIRED);
	if (found->flow->client.channel == INDICATIONS) {
		plan->strips = packet->send.front;
		plan->trims = packet->send.back;
		plan->stripped = packet->send.sum;
		plan->len = packet->send.len;
	} else {
		/* Padding behind the data is allowed, and rare. */
		if ((swap32(packet->first) & 0xffff) != packet->len - 4)
			return pass(PASSED_LENGTH);
		plan->strips = 4;
		plan->stripped = packet->first;
		plan->len = packet->len - 4;
	}
	plan->to_peer = found->counters;
	plan->meter_to_peer = found->flow->meter;
	if (found->flow->hops) {
		struct key hop = found->flow->hop;
		struct found other = {};
		if (find(&other, &hop) || !same(&other.flow->peer, &hop))
			return pass(PASSED_NO_WAY);
		int verdict = plan_to_client(plan, &other);
		if (verdict == FORWARD && goes_by_sockets(&found->state->from_client, &other.state->from_client))
			return PASS;
		return verdict;
	}
	plan->out = &found->flow->peer;
	if (plan_way(plan, *(volatile u32 *)&found->state->to_peer))
		return pass(PASSED_NO_WAY);
	return goes_by_sockets(&found->state->from_client, &found->state->from_peer) ? PASS : FORWARD;
}

/* The flow of a client without a channel, by the peer that it names. */
INLINE int find_named(struct found *found, const struct packet *packet)
{
	const struct send *send = &packet->send;
	struct key key = {
		.local_port = send->port,
		.remote_port = packet->key.remote_port,
		.channel = packet->key.local_port,
		.is_v6 = NAMES_PEER | send->is_v6 << 1 | packet->key.is_v6,
	};
#pragma unroll
	for (int word = 0; word < 4; word++) {
		key.local[word] = send->peer[word];
		key.remote[word] = packet->key.remote[word];
	}
	if (find(found, &key) || !same(&found->flow->client, &packet->key))
		return -1;
	const struct key *peer = &found->flow->peer;
	u32 differ = (peer->remote[0] ^ send->peer[0]) | (peer->remote[1] ^ send->peer[1]);
	differ |= (peer->remote[2] ^ send->peer[2]) | (peer->remote[3] ^ send->peer[3]);
	return differ || peer->remote_port != send->port || peer->is_v6 != send->is_v6 ? -1 : 0;
}

INLINE int plan_flows(struct plan *plan, struct packet *packet)
{
	struct found found = {};
	if (packet->send.front) {
		packet->key.channel = INDICATIONS;
		if (!find_named(&found, packet))
			return plan_from_client(plan, packet, &found);
	}
	u32 channel = swap32(packet->first) >> 16;
	if (channel - 0x4000 < 0x4000) {
		packet->key.channel = channel;
		/* The flow is asked as well: an entry may be used again while it is being read. */
		if (!find(&found, &packet->key) && same(&found.flow->client, &packet->key))
			return plan_from_client(plan, packet, &found);
	}
	packet->key.channel = FROM_NETWORK;
	if (!find(&found, &packet->key) && same(&found.flow->peer, &packet->key)) {
		plan->len = packet->len;
		int verdict = plan_to_client(plan, &found);
		if (verdict == FORWARD && goes_by_sockets(&found.state->from_peer, &found.state->from_client))
			return PASS;
		return verdict;
	}
	return PASS;
}

/* Whether the packet is one for the kernel to carry, and how. */
INLINE int decide(struct plan *plan, struct packet *packet)
{
	int verdict = plan_flows(plan, packet);
	if (verdict != FORWARD)
		return verdict;
	plan->is_v6 = plan->out->is_v6;
	/* A sum of zero is none, which IPv6 does not allow (RFC 8200 section 8.1). */
	if (!packet->check && (packet->key.is_v6 || plan->is_v6))
		return pass(PASSED_CHECKSUM);
	u32 len = (plan->is_v6 ? sizeof(struct ip6) : sizeof(struct ip4)) + sizeof(struct udp);
	len += plan->prefix + plan->len + plan->pads;
	if (len > plan->way->mtu)
		return pass(PASSED_TOO_LONG);
	/* RFC 8656 section 13: as a router does, but without an ICMP error. */
	if (packet->ttl <= 1) {
		count(DROPPED_HOP_LIMIT);
		return DROP;
	}
	return FORWARD;
}

INLINE void count_forwarded(const struct plan *plan)
{
	if (plan->to_peer) {
		plan->to_peer->packets_to_peer += 1;
		plan->to_peer->bytes_to_peer += plan->len;
		count(FORWARDED_TO_PEER);
	}
	if (plan->to_client) {
		plan->to_client->packets_to_client += 1;
		plan->to_client->bytes_to_client += plan->len;
		count(FORWARDED_TO_CLIENT);
	}
}

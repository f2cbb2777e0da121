/* ChannelData of open channels, carried by the kernel: one source for tc (`ferryd_tc`) and XDP (`ferryd_xdp`).
 *
 * The maps are a cache of what the daemon has decided. Whatever they do not hold, and every packet that is in any way
 * unusual, goes on to the daemon's sockets as it came: that is decided before the packet is touched. RFC 8656 sections
 * 12 to 14. */
#include "kernel.h"

/* Which end of a flow a packet has come to. In a client's key `channel` is the channel's number (0x4000 and up), in a
 * peer's one of these. */
enum {
	FROM_NETWORK = 0,
	/* From a relayed address of this server: found from within alone, never by what an interface receives. */
	FROM_RELAY = 1,
};

/* Addresses of IPv4 are in the first word. Everything is in network order but `channel` and `is_v6`. */
struct key {
	u32 local[4];
	u32 remote[4];
	u16 local_port;
	u16 remote_port;
	u16 channel;
	u16 is_v6;
};

/* Never changes while an entry leads to it, nor for a grace period afterwards. */
struct flow {
	/* The client's 5-tuple and the channel. */
	struct key client;
	/* The relayed address and the peer. */
	struct key peer;
	/* The other allocation's `peer`, where the peer is a relayed address of this server. */
	struct key hop;
	u32 hops;
	u32 unused;
};

/* Written by the daemon at any time, each field by one store. */
struct state {
	/* CLOCK_MONOTONIC in nanoseconds: the earliest of allocation, permission and channel. */
	u64 deadline;
	/* Indices of `ways`; 0 is none. */
	u32 to_peer;
	u32 to_client;
};

/* A way out of this host, never changed while a flow uses it. */
struct way {
	u32 ifindex;
	u32 mtu;
	u8 to[6];
	u8 from[6];
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
	DROPPED_HOP_LIMIT,
	DROPPED_FAILED,
	TOTALS,
};

/* Sized by the loader. */
SECTION("maps") struct map entries = { MAP_HASH, sizeof(struct key), 8, 1, 0 };
SECTION("maps") struct map flows = { MAP_ARRAY, 4, sizeof(struct flow), 1, 0 };
SECTION("maps") struct map states = { MAP_ARRAY, 4, sizeof(struct state), 1, MAP_MMAPABLE };
SECTION("maps") struct map ways = { MAP_ARRAY, 4, sizeof(struct way), 1, 0 };
SECTION("maps") struct map counts = { MAP_PERCPU_ARRAY, 4, sizeof(struct counters), 1, 0 };
SECTION("maps") struct map totals = { MAP_PERCPU_ARRAY, 4, 8, TOTALS, 0 };

/* Room for a payload that has to be moved within its packet. */
enum { SCRATCH = 2048 };
SECTION("maps") struct map scratch = { MAP_PERCPU_ARRAY, 4, SCRATCH, 1, 0 };

/* A datagram without options, extension headers or fragments. */
struct packet {
	struct key key;
	/* The first four bytes of the payload. */
	u32 first;
	/* Bytes of the payload. */
	u32 len;
	u16 check;
	u8 ttl;
	u8 tos;
};

/* What becomes of a packet: everything about it, before it is touched. */
struct plan {
	/* The payload begins with a ChannelData header that is to go. */
	u32 strips;
	/* The ChannelData header to be put in front as it is on the wire, or 0. */
	u32 header;
	/* Bytes of application data. */
	u32 len;
	u32 is_v6;
	const struct way *way;
	/* Source and destination: of a flow. */
	const struct key *out;
	struct counters *to_peer;
	struct counters *to_client;
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

/* ---- checksums: sums of words in network order, whose 16-bit fold is the ones' complement sum */

INLINE u32 fold(u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* The sum of both addresses of a key. */
INLINE u64 sum_addresses(const struct key *key)
{
	u64 sum = (u64)key->local[0] + key->remote[0];
	if (key->is_v6) {
		sum += (u64)key->local[1] + key->local[2] + key->local[3];
		sum += (u64)key->remote[1] + key->remote[2] + key->remote[3];
	}
	return sum;
}

/* The part of the UDP checksum that CHECKSUM_PARTIAL has in place: addresses, protocol, length. */
INLINE u64 sum_pseudo(const struct key *key, u32 udp_len)
{
	return sum_addresses(key) + swap16(PROTO_UDP) + swap16((u16)udp_len);
}

/* Ports, length and the first four bytes of the payload, where they are not the same before and after. */
INLINE u64 sum_rest(const struct key *key, u32 udp_len, u32 first)
{
	return (u64)key->local_port + key->remote_port + swap16((u16)udp_len) + first;
}

/* ---- reading */

/* 0 when this is a datagram for the maps to know; `len` is that of the frame. */
INLINE int parse(struct packet *packet, void *data, void *end, u32 len)
{
	struct ethernet *ethernet = data;
	if ((void *)(ethernet + 1) > end || ethernet->to[0] & 1)
		return -1;
	struct key *key = &packet->key;
	struct udp *udp;
	u32 ip_len;
	if (ethernet->proto == PROTO_IP4) {
		struct ip4 *ip = data + sizeof(*ethernet);
		udp = (void *)(ip + 1);
		if ((void *)(udp + 1) > end || ip->version_ihl != 0x45 || ip->protocol != PROTO_UDP)
			return -1;
		/* More Fragments, an offset, or the reserved bit. */
		if (ip->fragment & swap16(0xbfff))
			return -1;
		u64 sum = 0;
#pragma unroll
		for (int word = 0; word < 5; word++)
			sum += ((u32 *)ip)[word];
		if (fold(sum) != 0xffff)
			return -1;
		ip_len = swap16(ip->total_len);
		if (ip_len < sizeof(*ip) + sizeof(*udp) || ip_len + sizeof(*ethernet) != len)
			return -1;
		ip_len -= sizeof(*ip);
		key->local[0] = ip->destination;
		key->remote[0] = ip->source;
		packet->ttl = ip->ttl;
		packet->tos = ip->tos;
	} else if (ethernet->proto == PROTO_IP6) {
		struct ip6 *ip = data + sizeof(*ethernet);
		udp = (void *)(ip + 1);
		if ((void *)(udp + 1) > end || ip->next_header != PROTO_UDP)
			return -1;
		u32 word = swap32(ip->word);
		if (word >> 28 != 6)
			return -1;
		ip_len = swap16(ip->payload_len);
		if (ip_len < sizeof(*udp) || ip_len + sizeof(*ip) + sizeof(*ethernet) != len)
			return -1;
#pragma unroll
		for (int word = 0; word < 4; word++) {
			key->local[word] = ip->destination[word];
			key->remote[word] = ip->source[word];
		}
		key->is_v6 = 1;
		packet->ttl = ip->hop_limit;
		packet->tos = word >> 20;
	} else {
		return -1;
	}
	if (swap16(udp->len) != ip_len)
		return -1;
	key->local_port = udp->destination;
	key->remote_port = udp->source;
	packet->check = udp->check;
	packet->len = ip_len - sizeof(*udp);
	if (packet->len >= 4) {
		u32 *first = (void *)(udp + 1);
		if ((void *)(first + 1) > end)
			return -1;
		packet->first = *first;
	}
	return 0;
}

/* ---- deciding */

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

/* From a relayed address or a peer to the client whose channel is bound to it. */
INLINE int plan_to_client(struct plan *plan, const struct found *found)
{
	const struct key *client = &found->flow->client;
	if (has_expired(found->state))
		return pass(PASSED_EXPIRED);
	plan->header = swap32((u32)client->channel << 16 | plan->len);
	plan->out = client;
	plan->to_client = found->counters;
	if (plan_way(plan, *(volatile u32 *)&found->state->to_client))
		return pass(PASSED_NO_WAY);
	return FORWARD;
}

INLINE int plan_from_client(struct plan *plan, const struct packet *packet, const struct found *found)
{
	if (has_expired(found->state))
		return pass(PASSED_EXPIRED);
	/* Padding behind the data is allowed, and rare. */
	if ((swap32(packet->first) & 0xffff) != packet->len - 4)
		return pass(PASSED_LENGTH);
	plan->strips = 1;
	plan->len = packet->len - 4;
	plan->to_peer = found->counters;
	if (found->flow->hops) {
		struct key hop = found->flow->hop;
		struct found other = {};
		if (find(&other, &hop) || !same(&other.flow->peer, &hop))
			return pass(PASSED_NO_WAY);
		return plan_to_client(plan, &other);
	}
	plan->out = &found->flow->peer;
	if (plan_way(plan, *(volatile u32 *)&found->state->to_peer))
		return pass(PASSED_NO_WAY);
	return FORWARD;
}

INLINE int plan_channels(struct plan *plan, struct packet *packet)
{
	struct found found = {};
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
		return plan_to_client(plan, &found);
	}
	return PASS;
}

/* Whether the packet is one for the kernel to carry, and how. */
INLINE int decide(struct plan *plan, struct packet *packet)
{
	int verdict = plan_channels(plan, packet);
	if (verdict != FORWARD)
		return verdict;
	plan->is_v6 = plan->out->is_v6;
	/* A sum of zero is none, which IPv6 does not allow (RFC 8200 section 8.1). */
	if (!packet->check && (packet->key.is_v6 || plan->is_v6))
		return pass(PASSED_CHECKSUM);
	u32 len = (plan->is_v6 ? sizeof(struct ip6) : sizeof(struct ip4)) + sizeof(struct udp) + plan->len;
	if (plan->header)
		len += 4;
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

/* ---- writing */

struct out4 {
	struct ip4 ip;
	struct udp udp;
	u32 header;
} __attribute__((packed));

struct out6 {
	struct ip6 ip;
	struct udp udp;
	u32 header;
} __attribute__((packed));

INLINE u32 udp_len(const struct plan *plan)
{
	return sizeof(struct udp) + plan->len + (plan->header ? 4 : 0);
}

INLINE u64 stripped(const struct plan *plan, const struct packet *packet)
{
	return plan->strips ? packet->first : 0;
}

/* The UDP checksum that the packet is to have, from the one that it has (RFC 1624). */
INLINE u16 new_check(const struct plan *plan, const struct packet *packet)
{
	if (!packet->check)
		return 0;
	u32 old_len = sizeof(struct udp) + packet->len;
	u32 old = fold(sum_pseudo(&packet->key, old_len) + sum_rest(&packet->key, old_len, stripped(plan, packet)));
	u64 sum = (u64)(~packet->check & 0xffff) + (~old & 0xffff);
	sum += sum_pseudo(plan->out, udp_len(plan)) + sum_rest(plan->out, udp_len(plan), plan->header);
	u16 check = ~fold(sum);
	return check ? check : 0xffff;
}

INLINE void write_udp(struct udp *udp, const struct plan *plan, u16 check)
{
	udp->source = plan->out->local_port;
	udp->destination = plan->out->remote_port;
	udp->len = swap16((u16)udp_len(plan));
	udp->check = check;
}

/* DF is clear, as in what the daemon's sockets send: RFC 8656 section 14, alternate behavior. So the identification
 * matters, and is random: a counter would tell everybody how much this host relays. */
INLINE void write4(struct out4 *out, const struct plan *plan, const struct packet *packet, u16 check)
{
	struct ip4 *ip = &out->ip;
	ip->version_ihl = 0x45;
	ip->tos = packet->tos;
	ip->total_len = swap16((u16)(sizeof(*ip) + udp_len(plan)));
	ip->id = random_u32();
	ip->fragment = 0;
	ip->ttl = packet->ttl - 1;
	ip->protocol = PROTO_UDP;
	ip->check = 0;
	ip->source = plan->out->local[0];
	ip->destination = plan->out->remote[0];
	u64 sum = 0;
#pragma unroll
	for (int word = 0; word < 5; word++)
		sum += ((u32 *)ip)[word];
	ip->check = ~fold(sum);
	write_udp(&out->udp, plan, check);
	out->header = plan->header;
}

INLINE void write6(struct out6 *out, const struct plan *plan, const struct packet *packet, u16 check)
{
	struct ip6 *ip = &out->ip;
	/* RFC 8656 section 13.2: the flow label is not copied, and zero where none is made. */
	ip->word = swap32(6u << 28 | (u32)packet->tos << 20);
	ip->payload_len = swap16((u16)udp_len(plan));
	ip->next_header = PROTO_UDP;
	ip->hop_limit = packet->ttl - 1;
#pragma unroll
	for (int word = 0; word < 4; word++) {
		ip->source[word] = plan->out->local[word];
		ip->destination[word] = plan->out->remote[word];
	}
	write_udp(&out->udp, plan, check);
	out->header = plan->header;
}

/* ---- tc */

enum { NETWORK = sizeof(struct ethernet) };

INLINE long skb_write_headers(struct __sk_buff *skb, const struct plan *plan, const struct packet *packet, u16 check)
{
	u64 flags = STORE_RECOMPUTE_CSUM | STORE_INVALIDATE_HASH;
	if (plan->is_v6) {
		struct out6 out;
		write6(&out, plan, packet, check);
		if (plan->header)
			return skb_store_bytes(skb, NETWORK, &out, sizeof(out), flags);
		return skb_store_bytes(skb, NETWORK, &out, sizeof(out) - 4, flags);
	}
	struct out4 out;
	write4(&out, plan, packet, check);
	if (plan->header)
		return skb_store_bytes(skb, NETWORK, &out, sizeof(out), flags);
	return skb_store_bytes(skb, NETWORK, &out, sizeof(out) - 4, flags);
}

INLINE long skb_change_family(struct __sk_buff *skb, const struct plan *plan, const struct packet *packet)
{
	if (packet->key.is_v6 == plan->is_v6)
		return 0;
	return skb_change_proto(skb, plan->is_v6 ? PROTO_IP6 : PROTO_IP4, 0);
}

/* Makes or takes away room in front of the payload, between IP and UDP: what stands there is written anew. */
INLINE int skb_rewrite(struct __sk_buff *skb, const struct plan *plan, const struct packet *packet)
{
	int change = (plan->header ? 4 : 0) - (plan->strips ? 4 : 0);
	if (change && skb_adjust_room(skb, change, ADJUST_NET, 0))
		return pass(PASSED_NO_ROOM);
	if (skb_change_family(skb, plan, packet))
		return DROP;
	return skb_write_headers(skb, plan, packet, new_check(plan, packet)) ? DROP : FORWARD;
}

/* The same for a packet whose checksum a device is still to complete, from a place that cannot be changed: the headers
 * stay where they are and the payload moves. It is right for a complete checksum too. */
INLINE int skb_rewrite_in_place(struct __sk_buff *skb, const struct plan *plan, const struct packet *packet)
{
	u32 zero = 0, len = plan->len;
	u8 *payload = map_lookup(&scratch, &zero);
	int change = (plan->header ? 4 : 0) - (plan->strips ? 4 : 0);
	u32 from = NETWORK + (packet->key.is_v6 ? sizeof(struct ip6) : sizeof(struct ip4)) + sizeof(struct udp);
	u32 udp_at = NETWORK + (plan->is_v6 ? sizeof(struct ip6) : sizeof(struct ip4));
	/* For the verifier, which does not see that `len` and `moves` are one. */
	u32 moves = change ? len : 0;
	if (!payload || moves >= SCRATCH)
		return pass(PASSED_TOO_LONG);
	if (moves) {
		asm volatile("%0 &= 2047" : "+r"(moves));
		if (!moves || skb_load_bytes(skb, from + (plan->strips ? 4 : 0), payload, moves))
			return pass(PASSED_NO_ROOM);
	}
	if (change && skb_change_tail(skb, skb->len + change, 0))
		return pass(PASSED_NO_ROOM);
	if (skb_change_family(skb, plan, packet))
		return DROP;
	if (moves) {
		u32 to = udp_at + sizeof(struct udp) + (plan->header ? 4 : 0);
		asm volatile("%0 &= 2047" : "+r"(moves));
		if (!moves || skb_store_bytes(skb, to, payload, moves, STORE_RECOMPUTE_CSUM))
			return DROP;
	}
	if (skb_write_headers(skb, plan, packet, packet->check))
		return DROP;
	u32 check_at = udp_at + __builtin_offsetof(struct udp, check);
	u32 old_len = sizeof(struct udp) + packet->len;
	u64 pseudo = fold(sum_pseudo(plan->out, udp_len(plan)) + (~fold(sum_pseudo(&packet->key, old_len)) & 0xffff));
	if (l4_csum_replace(skb, check_at, 0, pseudo, CSUM_PSEUDO_HEADER | CSUM_MANGLED_0))
		return DROP;
	u32 old = fold(sum_rest(&packet->key, old_len, stripped(plan, packet)));
	u64 rest = fold(sum_rest(plan->out, udp_len(plan), plan->header) + (~old & 0xffff));
	return l4_csum_replace(skb, check_at, 0, rest, CSUM_MANGLED_0) ? DROP : FORWARD;
}

/* The sender's device was to complete the checksum: nothing but the pseudo header's sum is there. One of 65,536 complete
 * checksums looks the same. */
INLINE int looks_partial(const struct packet *packet)
{
	return packet->check && fold(sum_pseudo(&packet->key, sizeof(struct udp) + packet->len)) == packet->check;
}

SECTION("classifier") int ferryd_tc(struct __sk_buff *skb)
{
	/* More than one packet in one, or not for this host. */
	if (skb->gso_size || skb->vlan_present || skb->pkt_type != PACKET_HOST)
		return TC_NEXT;
	u32 headers = sizeof(struct ethernet) + sizeof(struct ip6) + sizeof(struct udp) + 4;
	if ((void *)(u64)skb->data + headers > (void *)(u64)skb->data_end)
		skb_pull_data(skb, skb->len < headers ? skb->len : headers);
	struct packet packet = {};
	if (parse(&packet, (void *)(u64)skb->data, (void *)(u64)skb->data_end, skb->len))
		return TC_NEXT;
	struct plan plan = {};
	int verdict = decide(&plan, &packet);
	if (verdict == FORWARD) {
		u32 ifindex = plan.way->ifindex;
		verdict = looks_partial(&packet) ? skb_rewrite_in_place(skb, &plan, &packet) : skb_rewrite(skb, &plan, &packet);
		if (verdict == FORWARD) {
			count_forwarded(&plan);
			return redirect_neigh(ifindex, 0, 0, 0);
		}
		if (verdict == DROP)
			count(DROPPED_FAILED);
	}
	return verdict == DROP ? TC_DROP : TC_NEXT;
}

/* ---- XDP */

/* tc needs none: the kernel resolves it then. */
INLINE int has_neighbour(const struct way *way)
{
	return way->to[0] | way->to[1] | way->to[2] | way->to[3] | way->to[4] | way->to[5];
}

INLINE void xdp_write_ethernet(struct ethernet *ethernet, const struct plan *plan, u16 proto)
{
	__builtin_memcpy(ethernet->to, plan->way->to, 6);
	__builtin_memcpy(ethernet->from, plan->way->from, 6);
	ethernet->proto = proto;
}

struct frame4 {
	struct ethernet ethernet;
	struct out4 out;
} __attribute__((packed));

struct frame6 {
	struct ethernet ethernet;
	struct out6 out;
} __attribute__((packed));

INLINE int xdp_rewrite(struct xdp_md *xdp, const struct plan *plan, const struct packet *packet)
{
	u16 check = new_check(plan, packet);
	int old = packet->key.is_v6 ? sizeof(struct ip6) : sizeof(struct ip4);
	int new = plan->is_v6 ? sizeof(struct ip6) : sizeof(struct ip4);
	int shrinks = old - new + (plan->strips ? 4 : 0) - (plan->header ? 4 : 0);
	if (shrinks && xdp_adjust_head(xdp, shrinks))
		return pass(PASSED_NO_ROOM);
	void *data = (void *)(u64)xdp->data, *end = (void *)(u64)xdp->data_end;
	if (plan->is_v6) {
		struct frame6 *frame = data;
		if ((void *)&frame->out.header > end)
			return DROP;
		xdp_write_ethernet(&frame->ethernet, plan, PROTO_IP6);
		struct out6 out;
		write6(&out, plan, packet, check);
		__builtin_memcpy(&frame->out, &out, sizeof(out) - 4);
		if (plan->header) {
			if ((void *)(frame + 1) > end)
				return DROP;
			frame->out.header = plan->header;
		}
		return FORWARD;
	}
	struct frame4 *frame = data;
	if ((void *)&frame->out.header > end)
		return DROP;
	xdp_write_ethernet(&frame->ethernet, plan, PROTO_IP4);
	struct out4 out;
	write4(&out, plan, packet, check);
	__builtin_memcpy(&frame->out, &out, sizeof(out) - 4);
	if (plan->header) {
		if ((void *)(frame + 1) > end)
			return DROP;
		frame->out.header = plan->header;
	}
	return FORWARD;
}

SECTION("xdp") int ferryd_xdp(struct xdp_md *xdp)
{
	void *data = (void *)(u64)xdp->data, *end = (void *)(u64)xdp->data_end;
	struct packet packet = {};
	if (parse(&packet, data, end, end - data))
		return XDP_PASS;
	struct plan plan = {};
	int verdict = decide(&plan, &packet);
	if (verdict == FORWARD) {
		/* What a device is still to complete is lost with the packet's metadata. */
		if (looks_partial(&packet)) {
			count(PASSED_CHECKSUM);
			return XDP_PASS;
		}
		if (!has_neighbour(plan.way)) {
			count(PASSED_NO_WAY);
			return XDP_PASS;
		}
		u32 ifindex = plan.way->ifindex;
		verdict = xdp_rewrite(xdp, &plan, &packet);
		if (verdict == FORWARD) {
			count_forwarded(&plan);
			return ifindex == xdp->ingress_ifindex ? XDP_TX : redirect(ifindex, 0);
		}
		if (verdict == DROP)
			count(DROPPED_FAILED);
	}
	return verdict == DROP ? XDP_DROP : XDP_PASS;
}

/* None of the helpers asks for more. */
SECTION("license") char licence[] = "Apache-2.0";

/* Writing: the headers that a packet is to have. */
#pragma once

#include "meter.h"

/* Everything in front of the data; the end of the first part is where IPv4's header is. */
struct out {
	union {
		struct ip6 ip6;
		struct {
			u8 unused[sizeof(struct ip6) - sizeof(struct ip4)];
			struct ip4 ip4;
		} __attribute__((packed));
	};
	struct udp udp;
	/* As many bytes of these as the plan says. */
	u32 prefix[OF_DATA6 / 4];
};

INLINE u64 write_channel_data(u32 *words, const struct plan *plan)
{
	words[0] = tagged(plan->out->channel, plan->len);
	return words[0];
}

/* As the daemon's: header, XOR-PEER-ADDRESS, DATA (RFC 8656 section 11.3). RFC 8489 section 6: the transaction ID "MUST be
 * uniformly and randomly chosen". */
INLINE u64 write_data_indication(u32 *words, const struct plan *plan)
{
	const struct key *from = plan->from;
	u32 is_v6 = plan->prefix == OF_DATA6, data = tagged(DATA, plan->len);
	words[0] = tagged(DATA_INDICATION, plan->prefix - 20 + plan->len + plan->pads);
	words[1] = COOKIE;
	words[2] = random_u32();
	words[3] = random_u32();
	words[4] = random_u32();
	words[5] = tagged(XOR_PEER_ADDRESS, is_v6 ? 20 : 8);
	words[6] = (from->remote_port ^ (COOKIE & 0xffff)) << 16 | (is_v6 ? FAMILY_V6 : FAMILY_V4) << 8;
	words[7] = from->remote[0] ^ COOKIE;
	u64 sum = data;
#pragma unroll
	for (int word = 0; word < 8; word++)
		sum += words[word];
	if (is_v6) {
#pragma unroll
		for (int word = 1; word < 4; word++) {
			words[7 + word] = from->remote[word] ^ words[1 + word];
			sum += words[7 + word];
		}
		words[11] = data;
	} else {
		words[8] = data;
	}
	return sum;
}

/* Returns the sum of what the data gets in front. */
INLINE u64 write_prefix(struct out *out, const struct plan *plan)
{
	u32 *words = out->prefix;
	if (!plan->prefix)
		return 0;
	return plan->prefix == OF_CHANNEL ? write_channel_data(words, plan) : write_data_indication(words, plan);
}

INLINE u32 udp_len(const struct plan *plan)
{
	return sizeof(struct udp) + plan->prefix + plan->len + plan->pads;
}

/* How much longer the packet gets in front of its data, and behind it. */
INLINE int front_change(const struct plan *plan)
{
	return (int)plan->prefix - (int)plan->strips;
}

INLINE int back_change(const struct plan *plan)
{
	return (int)plan->pads - (int)plan->trims;
}

/* The UDP checksum that the packet is to have, from the one that it has (RFC 1624). */
INLINE u16 new_check(const struct plan *plan, const struct packet *packet, u64 prefix)
{
	if (!packet->check)
		return 0;
	u32 old_len = sizeof(struct udp) + packet->len;
	u32 old = fold(sum_pseudo(&packet->key, old_len) + sum_rest(&packet->key, old_len, plan->stripped));
	u64 sum = (u64)(~packet->check & 0xffff) + (~old & 0xffff);
	sum += sum_pseudo(plan->out, udp_len(plan)) + sum_rest(plan->out, udp_len(plan), prefix);
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
INLINE void write4(struct out *out, const struct plan *plan, const struct packet *packet, u16 check)
{
	struct ip4 *ip = &out->ip4;
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
}

INLINE void write6(struct out *out, const struct plan *plan, const struct packet *packet, u16 check)
{
	struct ip6 *ip = &out->ip6;
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
}

/* Writing: the headers that a packet is to have. */
#pragma once

#include "meter.h"

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

/* The way of a packet through tc. */
#pragma once

#include "write.h"

enum { NETWORK = sizeof(struct ethernet) };

/* Sizes that the verifier sees. */
INLINE long skb_store_front(struct __sk_buff *skb, const struct plan *plan, const void *from, u32 headers)
{
	u64 flags = STORE_RECOMPUTE_CSUM | STORE_INVALIDATE_HASH;
	switch (plan->prefix) {
	case OF_DATA6:
		return skb_store_bytes(skb, NETWORK, from, headers + OF_DATA6, flags);
	case OF_DATA4:
		return skb_store_bytes(skb, NETWORK, from, headers + OF_DATA4, flags);
	case OF_CHANNEL:
		return skb_store_bytes(skb, NETWORK, from, headers + OF_CHANNEL, flags);
	default:
		return skb_store_bytes(skb, NETWORK, from, headers, flags);
	}
}

/* `out` has the prefix already. */
INLINE long
skb_write(struct __sk_buff *skb, struct out *out, const struct plan *plan, const struct packet *packet, u16 check)
{
	if (plan->is_v6) {
		write6(out, plan, packet, check);
		return skb_store_front(skb, plan, &out->ip6, sizeof(struct ip6) + sizeof(struct udp));
	}
	write4(out, plan, packet, check);
	return skb_store_front(skb, plan, &out->ip4, sizeof(struct ip4) + sizeof(struct udp));
}

INLINE long skb_change_family(struct __sk_buff *skb, const struct plan *plan, const struct packet *packet)
{
	if (packet->key.is_v6 == plan->is_v6)
		return 0;
	return skb_change_proto(skb, plan->is_v6 ? PROTO_IP6 : PROTO_IP4, 0);
}

/* Makes or takes away room in front of the data, between IP and UDP: what stands there is written anew. */
INLINE int skb_rewrite(struct __sk_buff *skb, const struct plan *plan, const struct packet *packet)
{
	int front = front_change(plan), back = back_change(plan);
	if (front && skb_adjust_room(skb, front, ADJUST_NET, 0))
		return pass(PASSED_NO_ROOM);
	if (back && skb_change_tail(skb, skb->len + back, 0))
		return DROP;
	if (skb_change_family(skb, plan, packet))
		return DROP;
	struct out out;
	u16 check = new_check(plan, packet, write_prefix(&out, plan));
	return skb_write(skb, &out, plan, packet, check) ? DROP : FORWARD;
}

/* The same for a packet whose checksum a device is still to complete, from a place that cannot be changed: the headers
 * stay where they are and the data moves. It is right for a complete checksum too. */
INLINE int skb_rewrite_in_place(struct __sk_buff *skb, const struct plan *plan, const struct packet *packet)
{
	u32 zero = 0, len = plan->len;
	u8 *data = map_lookup(&scratch, &zero);
	int front = front_change(plan), change = front + back_change(plan);
	u32 from = NETWORK + (packet->key.is_v6 ? sizeof(struct ip6) : sizeof(struct ip4)) + sizeof(struct udp);
	u32 udp_at = NETWORK + (plan->is_v6 ? sizeof(struct ip6) : sizeof(struct ip4));
	/* For the verifier, which does not see that `len` and `moves` are one. */
	u32 moves = front ? len : 0;
	if (!data || moves >= SCRATCH)
		return pass(PASSED_TOO_LONG);
	if (moves) {
		asm volatile("%0 &= 2047" : "+r"(moves));
		if (!moves || skb_load_bytes(skb, from + plan->strips, data, moves))
			return pass(PASSED_NO_ROOM);
	}
	if (change && skb_change_tail(skb, skb->len + change, 0))
		return pass(PASSED_NO_ROOM);
	if (skb_change_family(skb, plan, packet))
		return DROP;
	if (moves) {
		u32 to = udp_at + sizeof(struct udp) + plan->prefix;
		asm volatile("%0 &= 2047" : "+r"(moves));
		if (!moves || skb_store_bytes(skb, to, data, moves, STORE_RECOMPUTE_CSUM))
			return DROP;
	}
	struct out out;
	u64 prefix = write_prefix(&out, plan);
	if (skb_write(skb, &out, plan, packet, packet->check))
		return DROP;
	u32 check_at = udp_at + __builtin_offsetof(struct udp, check);
	u32 old_len = sizeof(struct udp) + packet->len;
	u64 pseudo = fold(sum_pseudo(plan->out, udp_len(plan)) + (~fold(sum_pseudo(&packet->key, old_len)) & 0xffff));
	if (l4_csum_replace(skb, check_at, 0, pseudo, CSUM_PSEUDO_HEADER | CSUM_MANGLED_0))
		return DROP;
	u32 old = fold(sum_rest(&packet->key, old_len, plan->stripped));
	u64 rest = fold(sum_rest(plan->out, udp_len(plan), prefix) + (~old & 0xffff));
	return l4_csum_replace(skb, check_at, 0, rest, CSUM_MANGLED_0) ? DROP : FORWARD;
}

/* What is behind the data of a Send indication. */
INLINE void skb_parse_back(struct __sk_buff *skb, struct packet *packet)
{
	struct tail tail;
	if (skb_load_bytes(skb, skb->len - sizeof(tail), &tail, sizeof(tail)))
		packet->send.front = 0;
	else
		parse_back(&packet->send, &tail);
}

/* The way of a packet through tc. */
#pragma once

#include "write.h"

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

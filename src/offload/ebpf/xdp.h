/* The way of a packet through XDP. */
#pragma once

#include "write.h"

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

/* The words in front of the data, behind the headers that are there. */
INLINE int xdp_write_prefix(u32 *words, void *end, const struct out *out, const struct plan *plan)
{
	if (!plan->prefix)
		return FORWARD;
	if ((void *)(words + 1) > end)
		return DROP;
	words[0] = out->prefix[0];
	if (plan->prefix == OF_CHANNEL)
		return FORWARD;
	if ((void *)(words + 9) > end)
		return DROP;
#pragma unroll
	for (int word = 1; word < 9; word++)
		words[word] = out->prefix[word];
	if (plan->prefix == OF_DATA4)
		return FORWARD;
	if ((void *)(words + 12) > end)
		return DROP;
#pragma unroll
	for (int word = 9; word < 12; word++)
		words[word] = out->prefix[word];
	return FORWARD;
}

struct frame4 {
	struct ethernet ethernet;
	struct ip4 ip;
	struct udp udp;
} __attribute__((packed));

struct frame6 {
	struct ethernet ethernet;
	struct ip6 ip;
	struct udp udp;
} __attribute__((packed));

/* Makes or takes away room around the data. */
INLINE int xdp_make_room(struct xdp_md *xdp, const struct plan *plan, const struct packet *packet)
{
	int old = packet->key.is_v6 ? sizeof(struct ip6) : sizeof(struct ip4);
	int new = plan->is_v6 ? sizeof(struct ip6) : sizeof(struct ip4);
	int front = new - old + front_change(plan), back = back_change(plan);
	/* Not every driver leaves room behind. */
	if (back > 0 && xdp_adjust_tail(xdp, back))
		return pass(PASSED_NO_ROOM);
	if (front && xdp_adjust_head(xdp, -front)) {
		if (back > 0 && xdp_adjust_tail(xdp, -back))
			return DROP;
		return pass(PASSED_NO_ROOM);
	}
	return back < 0 && xdp_adjust_tail(xdp, back) ? DROP : FORWARD;
}

INLINE int xdp_rewrite(struct xdp_md *xdp, const struct plan *plan, const struct packet *packet)
{
	struct out out;
	u16 check = new_check(plan, packet, write_prefix(&out, plan));
	int verdict = xdp_make_room(xdp, plan, packet);
	if (verdict != FORWARD)
		return verdict;
	void *data = (void *)(u64)xdp->data, *end = (void *)(u64)xdp->data_end;
	if (plan->is_v6) {
		struct frame6 *frame = data;
		if ((void *)(frame + 1) > end)
			return DROP;
		xdp_write_ethernet(&frame->ethernet, plan, PROTO_IP6);
		write6(&out, plan, packet, check);
		__builtin_memcpy(&frame->ip, &out.ip6, sizeof(struct ip6) + sizeof(struct udp));
		return xdp_write_prefix((void *)(frame + 1), end, &out, plan);
	}
	struct frame4 *frame = data;
	if ((void *)(frame + 1) > end)
		return DROP;
	xdp_write_ethernet(&frame->ethernet, plan, PROTO_IP4);
	write4(&out, plan, packet, check);
	__builtin_memcpy(&frame->ip, &out.ip4, sizeof(struct ip4) + sizeof(struct udp));
	return xdp_write_prefix((void *)(frame + 1), end, &out, plan);
}

/* What is behind the data of a Send indication. */
INLINE void xdp_parse_back(struct packet *packet, void *data, void *end)
{
	u64 at = end - data - sizeof(struct tail);
	struct tail *tail = data + (at & 0x3fff);
	if ((void *)(tail + 1) > end || at > 0x3fff) {
		packet->send.front = 0;
		return;
	}
	struct tail copy = *tail;
	parse_back(&packet->send, &copy);
}

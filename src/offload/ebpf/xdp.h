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

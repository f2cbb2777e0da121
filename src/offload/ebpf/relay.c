/* ChannelData of open channels, and indications, carried by the kernel: one source for tc (`ferryd_tc`) and XDP (`ferryd_xdp`).
 *
 * The maps are a cache of what the daemon has decided. Whatever they do not hold, and every packet that is in any way
 * unusual, goes on to the daemon's sockets as it came: that is decided before the packet is touched. RFC 8656 sections
 * 12 to 14. */
#include "tc.h"
#include "xdp.h"

SECTION("classifier") int ferryd_tc(struct __sk_buff *skb)
{
	/* More than one packet in one, or not for this host. */
	if (skb->gso_size || skb->vlan_present || skb->pkt_type != PACKET_HOST)
		return TC_NEXT;
	u32 headers = sizeof(struct ethernet) + sizeof(struct ip6) + sizeof(struct udp) + OF_DATA6;
	if ((void *)(u64)skb->data + headers > (void *)(u64)skb->data_end)
		skb_pull_data(skb, skb->len < headers ? skb->len : headers);
	struct packet packet;
	if (parse(&packet, (void *)(u64)skb->data, (void *)(u64)skb->data_end, skb->len))
		return TC_NEXT;
	if (packet.send.front && packet.send.back)
		skb_parse_back(skb, &packet);
	struct plan plan = {};
	int verdict = decide(&plan, &packet);
	if (verdict == FORWARD)
		verdict = charge(&plan);
	if (verdict == FORWARD) {
		const struct way *way = plan.way;
		verdict = looks_partial(&packet) ? skb_rewrite_in_place(skb, &plan, &packet) : skb_rewrite(skb, &plan, &packet);
		if (verdict == FORWARD) {
			count_forwarded(&plan);
			return redirect_neigh(way->ifindex, &way->next_hop, sizeof(way->next_hop), 0);
		}
		if (verdict == DROP)
			count(DROPPED_FAILED);
	}
	return verdict == DROP ? TC_DROP : TC_NEXT;
}

SECTION("xdp") int ferryd_xdp(struct xdp_md *xdp)
{
	void *data = (void *)(u64)xdp->data, *end = (void *)(u64)xdp->data_end;
	struct packet packet;
	if (parse(&packet, data, end, end - data))
		return XDP_PASS;
	if (packet.send.front && packet.send.back)
		xdp_parse_back(&packet, data, end);
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
		verdict = charge(&plan);
		if (verdict != FORWARD)
			return verdict == DROP ? XDP_DROP : XDP_PASS;
		const struct way *way = plan.way;
		verdict = xdp_rewrite(xdp, &plan, &packet);
		if (verdict == FORWARD) {
			count_forwarded(&plan);
			return way->ifindex == xdp->ingress_ifindex && !way->redirects ? XDP_TX : redirect(way->ifindex, 0);
		}
		if (verdict == DROP)
			count(DROPPED_FAILED);
	}
	return verdict == DROP ? XDP_DROP : XDP_PASS;
}

/* None of the helpers asks for more. */
SECTION("license") char licence[] = "Apache-2.0";

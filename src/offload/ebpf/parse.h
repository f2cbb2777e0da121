/* Reading: which packets the maps can know. */
#pragma once

#include "checksum.h"

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

/* The sender's device was to complete the checksum: nothing but the pseudo header's sum is there. One of 65,536 complete
 * checksums looks the same. */
INLINE int looks_partial(const struct packet *packet)
{
	return packet->check && fold(sum_pseudo(&packet->key, sizeof(struct udp) + packet->len)) == packet->check;
}

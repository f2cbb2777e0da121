/* Reading: which packets the maps can know. */
#pragma once

#include "checksum.h"

/* A Send indication in a layout that browsers write: XOR-PEER-ADDRESS, DATA, and nothing (Chromium) or FINGERPRINT
 * (Firefox), the padding zero. */
struct send {
	u32 peer[4];
	u16 port;
	u16 is_v6;
	/* Bytes in front of the data, of data, and behind it; 0 in front when this is none. */
	u32 front;
	u32 len;
	u32 back;
	/* The sum of everything but the data. */
	u64 sum;
};

/* A datagram without options, extension headers or fragments. */
struct packet {
	struct key key;
	struct send send;
	/* The first four bytes of the payload. */
	u32 first;
	/* Bytes of the payload. */
	u32 len;
	u16 check;
	u8 ttl;
	u8 tos;
};

/* What is behind XOR-PEER-ADDRESS of a Send indication: `front` ends with the header of DATA. */
INLINE void parse_data(struct send *send, u32 front, u32 header, u32 len)
{
	send->len = swap32(header) & 0xffff;
	send->back = len - front - send->len;
	u32 padding = -send->len & 3;
	if (header == tagged(DATA, send->len) && (send->back == padding || send->back == padding + 8))
		send->front = front;
}

INLINE void parse_send(struct packet *packet, u32 *words, void *end)
{
	struct send *send = &packet->send;
	if ((void *)(words + 9) > end || packet->first != tagged(SEND, packet->len - 20) || words[1] != COOKIE)
		return;
	/* An octet of zero, the family and the port. */
	u32 family = words[6] & 0xffff;
	send->port = words[6] >> 16 ^ COOKIE;
	send->peer[0] = words[7] ^ COOKIE;
	send->peer[1] = send->peer[2] = send->peer[3] = 0;
	send->is_v6 = 0;
	send->sum = 0;
#pragma unroll
	for (int word = 0; word < 9; word++)
		send->sum += words[word];
	if (words[5] == tagged(XOR_PEER_ADDRESS, 8) && family == FAMILY_V4 << 8) {
		parse_data(send, 36, words[8], packet->len);
		return;
	}
	if (words[5] != tagged(XOR_PEER_ADDRESS, 20) || family != FAMILY_V6 << 8 || (void *)(words + 12) > end)
		return;
	send->is_v6 = 1;
#pragma unroll
	for (int word = 1; word < 4; word++)
		send->peer[word] = words[7 + word] ^ words[1 + word];
#pragma unroll
	for (int word = 9; word < 12; word++)
		send->sum += words[word];
	parse_data(send, 48, words[11], packet->len);
}

/* The last twelve bytes of a packet. */
struct tail {
	u32 words[3];
};

/* What is behind the data of a Send indication. FINGERPRINT is not computed: it tells STUN from what else may come to a
 * port, and these attributes fill their datagram. */
INLINE void parse_back(struct send *send, const struct tail *tail)
{
	u32 padding = send->back & 3;
	u32 last = send->back & 8 ? tail->words[0] : tail->words[2];
	if (padding && last >> (32 - 8 * padding))
		send->front = 0;
	if (send->back & 8) {
		if (tail->words[1] != tagged(FINGERPRINT, 4))
			send->front = 0;
		send->sum += (u64)tail->words[1] + tail->words[2];
	}
}

/* 0 when this is a datagram for the maps to know; `len` is that of the frame. */
INLINE int parse(struct packet *packet, void *data, void *end, u32 len)
{
	packet->key = (struct key){};
	packet->send.front = packet->send.back = packet->first = 0;
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
		if ((*first & 0xffff) == swap16(SEND))
			parse_send(packet, first, end);
	}
	return 0;
}

/* The sender's device was to complete the checksum: nothing but the pseudo header's sum is there. One of 65,536 complete
 * checksums looks the same. */
INLINE int looks_partial(const struct packet *packet)
{
	return packet->check && fold(sum_pseudo(&packet->key, sizeof(struct udp) + packet->len)) == packet->check;
}

/* Checksums: sums of words in network order, whose 16-bit fold is the ones' complement sum. */
#pragma once

#include "maps.h"

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

/* Ports, length and what is around the data, where they are not the same before and after. */
INLINE u64 sum_rest(const struct key *key, u32 udp_len, u64 around)
{
	return (u64)key->local_port + key->remote_port + swap16((u16)udp_len) + around;
}

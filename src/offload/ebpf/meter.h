/* Metering: what an allocation may carry, by the buckets that the daemon's sockets take from too (`turn/meter.rs`). */
#pragma once

#include "decide.h"

/* Data of so much time may come at once. */
#define DEPTH 1000000000ull
/* Each failure is a packet that another processor has taken tokens for in the same nanoseconds. */
enum { TRIES = 4 };

/* Takes `tokens` of `per_second` (0: without limit) from a bucket. */
INLINE int take(u64 *full_at, u64 time, u64 tokens, u32 per_second)
{
	if (!per_second)
		return FORWARD;
	u64 cost = tokens * 1000000000ull / per_second;
	/* Whatever the rate, one datagram fits into a full bucket. */
	u64 depth = cost > DEPTH ? cost : DEPTH;
	u64 seen = *(volatile u64 *)full_at;
#pragma unroll
	for (int attempt = 0; attempt < TRIES; attempt++) {
		u64 next = (seen > time ? seen : time) + cost;
		if (next > time + depth)
			return DROP;
		u64 found = __sync_val_compare_and_swap(full_at, seen, next);
		if (found == seen)
			return FORWARD;
		seen = found;
	}
	return PASS;
}

INLINE int charge_one(u32 number, int is_to_peers, u32 len)
{
	if (!number)
		return FORWARD;
	u32 index = number - 1;
	struct meter *meter = map_lookup(&meters, &index);
	if (!meter)
		return PASS;
	struct buckets *buckets = is_to_peers ? &meter->to_peers : &meter->to_client;
	/* The clock that ticks would have a bucket be fuller than it is. */
	u64 time = now();
	int verdict = take(&buckets->packets, time, 1, *(volatile u32 *)&meter->packets_per_second);
	if (verdict == FORWARD)
		verdict = take(&buckets->bytes, time, len, *(volatile u32 *)&meter->bytes_per_second);
	if (verdict == PASS)
		count(PASSED_CONTENDED);
	if (verdict == DROP)
		count(DROPPED_RATE);
	return verdict;
}

/* Takes tokens for a packet, of each allocation that it goes through. What is left to the sockets afterwards pays there
 * again: less is let through, never more. */
INLINE int charge(const struct plan *plan)
{
	int verdict = charge_one(plan->meter_to_peer, 1, plan->len);
	if (verdict != FORWARD)
		return verdict;
	verdict = charge_one(plan->meter_to_client, 0, plan->len);
	/* What another allocation does not let in has been sent all the same. */
	if (verdict == DROP && plan->to_peer) {
		plan->to_peer->packets_to_peer += 1;
		plan->to_peer->bytes_to_peer += plan->len;
	}
	return verdict;
}

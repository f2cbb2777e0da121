/* The generator, the sink and the bare reflector of `benches/relay --offload`: XDP programs on the two ends of a veth
 * pair, and a tc program for what arrives there in trains. The generator is run by BPF_PROG_TEST_RUN with live frames, once for each frame.
 *
 * Data carries MARK, the index of its frame, a number and the number's complement, so that every frame of an index has one
 * checksum, which the sender of this bench knows beforehand. */
#include "../../../src/offload/ebpf/kernel.h"

/* Of a call's audio, and of a video's frame. */
enum { PAYLOAD = 160, LONG = 1200, FRAME = 1264 };
enum { UDP4_AT = 34, UDP6_AT = 54, UDP = 8, CHANNEL_HEADER = 4 };
static const u32 MARK = 0xfe771d02;

struct frame {
	u32 len;
	/* A checksum that the sender's device was to complete, which a veth never does. */
	u16 partial;
	u16 unused;
	u8 bytes[FRAME];
};

/* The beginning of a payload. */
struct label {
	u32 mark;
	u32 index;
	u32 number;
	u32 complement;
};

struct control {
	/* Frames under way at most; 0 to send nothing. */
	u64 window;
	/* Frames that were lost, and make room. */
	u64 forgiven;
	u32 ifindex;
	u32 frames;
	/* Frames of a flow that follow each other. */
	u32 run;
	/* The interface that cuts trains. */
	u32 cut_ifindex;
};

struct progress {
	u64 sent;
	/* Runs without a frame, as enough were under way. */
	u64 waited;
	u64 arrived;
	/* Not what was to arrive, in any byte. */
	u64 wrong;
	/* Not above every number that came before of the same flow. */
	u64 unordered;
};

SECTION("maps") struct map controls = { MAP_ARRAY, 4, sizeof(struct control), 1, 0 };
SECTION("maps") struct map progresses = { MAP_ARRAY, 4, sizeof(struct progress), 1, 0 };
SECTION("maps") struct map frames = { MAP_ARRAY, 4, sizeof(struct frame), 1, 0 };
/* What each of `frames` is when it arrives. */
SECTION("maps") struct map arrivals = { MAP_ARRAY, 4, sizeof(struct frame), 1, 0 };
/* The number that is expected next of each of them. */
SECTION("maps") struct map numbers = { MAP_ARRAY, 4, 8, 1, 0 };

/* Lengths are constants, so that these are moves without a loop. */
#define COPY(to, from, len)                                                                      \
	do {                                                                                         \
		_Pragma("unroll") for (u32 at = 0; at + 8 <= (len); at += 8)                             \
			*(u64 *)((u8 *)(to) + at) = *(const u64 *)((const u8 *)(from) + at);                 \
		*(u64 *)((u8 *)(to) + (len) - 8) = *(const u64 *)((const u8 *)(from) + (len) - 8);       \
	} while (0)

/* Where data begins, and how long it is. */
#define EVERY_LENGTH                                                                             \
	EACH(UDP4_AT + UDP, PAYLOAD)                                                                 \
	EACH(UDP4_AT + UDP + CHANNEL_HEADER, PAYLOAD)                                                \
	EACH(UDP6_AT + UDP, PAYLOAD)                                                                 \
	EACH(UDP6_AT + UDP + CHANNEL_HEADER, PAYLOAD)                                                \
	EACH(UDP4_AT + UDP, LONG)                                                                    \
	EACH(UDP4_AT + UDP + CHANNEL_HEADER, LONG)

INLINE int fill(struct xdp_md *xdp, const struct frame *frame, u32 index, u32 number, u32 data_at, u32 payload)
{
	u8 *data = (void *)(u64)xdp->data, *end = (void *)(u64)xdp->data_end;
	if (data + data_at + payload > end)
		return -1;
	COPY(data, frame->bytes, data_at + payload);
	struct label *label = (void *)(data + data_at);
	label->mark = MARK;
	label->index = index;
	label->number = number;
	label->complement = ~number;
	return 0;
}

SECTION("xdp") int bench_generate(struct xdp_md *xdp)
{
	u32 zero = 0;
	struct control *control = map_lookup(&controls, &zero);
	struct progress *progress = map_lookup(&progresses, &zero);
	if (!control || !progress || !control->frames || !control->run)
		return XDP_DROP;
	u64 sent = progress->sent;
	long long under_way = sent - *(volatile u64 *)&progress->arrived - control->forgiven;
	if (under_way >= (long long)control->window) {
		progress->waited += 1;
		return XDP_DROP;
	}
	u64 run = control->run, runs = sent / run;
	u32 index = runs % control->frames, number = runs / control->frames * run + sent % run;
	struct frame *frame = map_lookup(&frames, &index);
	if (!frame)
		return XDP_DROP;
	int less = (int)frame->len - (int)(xdp->data_end - xdp->data);
	if (less && xdp_adjust_tail(xdp, less))
		return XDP_DROP;
	int failed = -1;
#define EACH(data_at, payload)                                                                   \
	case (data_at) + (payload):                                                                  \
		failed = fill(xdp, frame, index, number, data_at, payload);                              \
		break;
	switch (frame->len) {
		EVERY_LENGTH
	}
#undef EACH
	if (failed)
		return XDP_DROP;
	progress->sent = sent + 1;
	return redirect(control->ifindex, 0);
}

#define DIFFERENCE(type, at) (*(const type *)(got + (at)) ^ *(const type *)(wanted + (at)))

/* Everything but identification, hop limit, flow label and number. */
INLINE int differs(const u8 *got, const struct frame *frame, u32 udp_at, u32 data_at, u32 payload)
{
	const u8 *wanted = frame->bytes;
	u64 difference = DIFFERENCE(u16, 12);
	if (udp_at == UDP4_AT) {
		difference |= DIFFERENCE(u32, 14) | DIFFERENCE(u8, 23) | DIFFERENCE(u64, 26);
		u64 sum = 0;
		_Pragma("unroll") for (u32 at = 14; at < UDP4_AT; at += 4) sum += *(const u32 *)(got + at);
		sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
		difference |= (u16)~((sum & 0xffff) + (sum >> 16));
	} else {
		difference |= DIFFERENCE(u16, 18) | DIFFERENCE(u8, 20) | (got[14] ^ wanted[14]) >> 4;
		_Pragma("unroll") for (u32 at = 22; at < UDP6_AT; at += 8) difference |= DIFFERENCE(u64, at);
	}
	/* Ports and length; the checksum may be for a device to complete. */
	difference |= DIFFERENCE(u32, udp_at) | DIFFERENCE(u16, udp_at + 4);
	u16 check = *(const u16 *)(got + udp_at + 6);
	difference |= check != *(const u16 *)(wanted + udp_at + 6) && check != frame->partial;
	if (data_at > udp_at + UDP)
		difference |= DIFFERENCE(u32, udp_at + UDP);
	difference |= DIFFERENCE(u64, data_at);
	_Pragma("unroll") for (u32 at = data_at + sizeof(struct label); at < data_at + payload; at += 8) {
		difference |= DIFFERENCE(u64, at);
		/* One after the other: there are not registers enough for all. */
		asm volatile("" : "+r"(difference) : : "memory");
	}
	const struct label *label = (const void *)(got + data_at);
	return difference || label->number != ~label->complement;
}

INLINE int arrive(const u8 *data, const u8 *end, u32 udp_at, u32 data_at, u32 payload)
{
	if (data + data_at + payload > end)
		return XDP_PASS;
	const struct label *label = (const void *)(data + data_at);
	u32 zero = 0, index = label->index;
	struct progress *progress = map_lookup(&progresses, &zero);
	if (label->mark != MARK || !progress)
		return XDP_PASS;
	struct frame *frame = map_lookup(&arrivals, &index);
	u64 *next = map_lookup(&numbers, &index);
	if (!frame || !next || frame->len != data_at + payload || differs(data, frame, udp_at, data_at, payload)) {
		progress->wrong += 1;
		return XDP_DROP;
	}
	if (label->number < *next)
		progress->unordered += 1;
	else
		*next = (u64)label->number + 1;
	progress->arrived += 1;
	return XDP_DROP;
}

/* What is not data of the bench is for the host. */
SECTION("xdp") int bench_sink(struct xdp_md *xdp)
{
	const u8 *data = (void *)(u64)xdp->data, *end = (void *)(u64)xdp->data_end;
#define EACH(data_at, payload)                                                                   \
	case (data_at) + (payload):                                                                  \
		return arrive(data, end, (data_at) < UDP6_AT + UDP ? UDP4_AT : UDP6_AT, data_at, payload);
	switch (end - data) {
		EVERY_LENGTH
	}
#undef EACH
	return XDP_PASS;
}

/* Trains go on to where they are cut. */
SECTION("classifier") int bench_pass_on(struct __sk_buff *skb __attribute__((unused)))
{
	u32 zero = 0;
	struct control *control = map_lookup(&controls, &zero);
	return control && control->cut_ifindex ? redirect(control->cut_ifindex, 0) : TC_DROP;
}

/* The end of whatever a driver hands over: what is left is the generator's own time. */
SECTION("xdp") int bench_drop(struct xdp_md *xdp)
{
	u32 zero = 0;
	struct progress *progress = map_lookup(&progresses, &zero);
	if (progress)
		progress->arrived += 1;
	return xdp->data < xdp->data_end ? XDP_DROP : XDP_PASS;
}

/* The least that sends a frame back. */
SECTION("xdp") int bench_reflect(struct xdp_md *xdp)
{
	struct ethernet *ethernet = (void *)(u64)xdp->data;
	if ((void *)(ethernet + 1) > (void *)(u64)xdp->data_end)
		return XDP_DROP;
	struct ethernet old = *ethernet;
	__builtin_memcpy(ethernet->to, old.from, 6);
	__builtin_memcpy(ethernet->from, old.to, 6);
	return XDP_TX;
}

SECTION("license") char licence[] = "Apache-2.0";

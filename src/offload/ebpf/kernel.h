/* What the programs need of the kernel's interface, in its own layout (linux/bpf.h, linux/pkt_cls.h), so that a build
 * depends on no header of the machine. */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SECTION(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))

#define swap16(value) __builtin_bswap16(value)
#define swap32(value) __builtin_bswap32(value)
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the committed object is for little-endian hosts"
#endif

enum { MAP_HASH = 1, MAP_ARRAY = 2, MAP_PERCPU_ARRAY = 6 };
enum { MAP_MMAPABLE = 1 << 10 };

/* The definition of a map in the section "maps", which the loader reads. */
struct map {
	u32 type;
	u32 key_size;
	u32 value_size;
	u32 max_entries;
	u32 flags;
};

/* The beginning of a tc program's context. */
struct __sk_buff {
	u32 len;
	u32 pkt_type;
	u32 mark;
	u32 queue_mapping;
	u32 protocol;
	u32 vlan_present;
	u32 vlan_tci;
	u32 vlan_proto;
	u32 priority;
	u32 ingress_ifindex;
	u32 ifindex;
	u32 tc_index;
	u32 cb[5];
	u32 hash;
	u32 tc_classid;
	u32 data;
	u32 data_end;
	u32 napi_id;
	u32 family;
	u32 remote_ip4;
	u32 local_ip4;
	u32 remote_ip6[4];
	u32 local_ip6[4];
	u32 remote_port;
	u32 local_port;
	u32 data_meta;
	u64 flow_keys;
	u64 tstamp;
	u32 wire_len;
	u32 gso_segs;
	u64 sk;
	u32 gso_size;
};

/* An XDP program's context. */
struct xdp_md {
	u32 data;
	u32 data_end;
	u32 data_meta;
	u32 ingress_ifindex;
	u32 rx_queue_index;
	u32 egress_ifindex;
};

/* struct bpf_redir_neigh. */
struct next_hop {
	/* AF_INET or AF_INET6 in the host's order. */
	u32 family;
	/* An IPv4 address is in the first word. */
	u32 address[4];
};

enum { TC_NEXT = -1, TC_DROP = 2 };
enum { XDP_DROP = 1, XDP_PASS = 2, XDP_TX = 3 };
enum { PACKET_HOST = 0 };
enum { ADJUST_NET = 0 };
enum { STORE_RECOMPUTE_CSUM = 1, STORE_INVALIDATE_HASH = 2 };
enum { CSUM_PSEUDO_HEADER = 1 << 4, CSUM_MANGLED_0 = 1 << 5 };

static void *(*const map_lookup)(void *map, const void *key) = (void *)1;
static u64 (*const now)(void) = (void *)5;
static u32 (*const random_u32)(void) = (void *)7;
static long (*const skb_store_bytes)(struct __sk_buff *, u32 offset, const void *from, u32 len, u64 flags) = (void *)9;
static long (*const l4_csum_replace)(struct __sk_buff *, u32 offset, u64 from, u64 to, u64 flags) = (void *)11;
static long (*const redirect)(u32 ifindex, u64 flags) = (void *)23;
static long (*const skb_load_bytes)(const void *, u32 offset, void *to, u32 len) = (void *)26;
static long (*const skb_change_proto)(struct __sk_buff *, u16 proto, u64 flags) = (void *)31;
static long (*const skb_change_tail)(struct __sk_buff *, u32 len, u64 flags) = (void *)38;
static long (*const skb_pull_data)(struct __sk_buff *, u32 len) = (void *)39;
static long (*const xdp_adjust_head)(struct xdp_md *, int delta) = (void *)44;
static long (*const xdp_adjust_tail)(struct xdp_md *, int delta) = (void *)65;
static long (*const skb_adjust_room)(struct __sk_buff *, int diff, u32 mode, u64 flags) = (void *)50;
static long (*const redirect_neigh)(u32 ifindex, const struct next_hop *next_hop, int len, u64 flags) = (void *)152;
static u64 (*const coarse_now)(void) = (void *)160;

/* Headers as they are on the wire; every number in network order. */
enum { PROTO_IP4 = 0x0008, PROTO_IP6 = 0xdd86, PROTO_UDP = 17 };

struct ethernet {
	u8 to[6];
	u8 from[6];
	u16 proto;
} __attribute__((packed));

struct ip4 {
	u8 version_ihl;
	u8 tos;
	u16 total_len;
	u16 id;
	u16 fragment;
	u8 ttl;
	u8 protocol;
	u16 check;
	u32 source;
	u32 destination;
} __attribute__((packed));

struct ip6 {
	/* 4 bits of version, 8 of traffic class, 20 of flow label. */
	u32 word;
	u16 payload_len;
	u8 next_header;
	u8 hop_limit;
	u32 source[4];
	u32 destination[4];
} __attribute__((packed));

struct udp {
	u16 source;
	u16 destination;
	u16 len;
	u16 check;
} __attribute__((packed));

/* STUN (RFC 8489 sections 5 and 14): words of a message, without what is xored with the cookie. */
enum { COOKIE = swap32(0x2112a442) };
enum { SEND = 0x0016, DATA_INDICATION = 0x0017 };
enum { XOR_PEER_ADDRESS = 0x0012, DATA = 0x0013, FINGERPRINT = 0x8028 };
enum { FAMILY_V4 = 1, FAMILY_V6 = 2 };

/* The first word of a message or an attribute. */
#define tagged(kind, len) swap32((u32)(kind) << 16 | (len))

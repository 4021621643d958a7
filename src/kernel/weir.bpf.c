/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The kernel engine's data path: one program at the TC ingress of each interface.
 *
 * Theory of operation
 *
 * A packet is a key: who sends to whom. Each connection or session has two entries under such keys, one as its client sends and
 * one as its backend does; an entry says what the packet becomes (`to`), and its `to`, turned round, is the key of the other. A
 * packet with an entry is rewritten and leaves by bpf_redirect_neigh, past the host's own forwarding. A packet without one that
 * opens something (a SYN, a datagram) and is addressed to a service gets a backend, and two entries. A packet from the middle of
 * a connection without entries (the table was lost, or another node had them) joins it if all there is to know follows from the
 * packet: the backend by source_hash, and no port of this host's in it (modes keep and dsr); so does an answer of such a
 * backend, if it goes to a client that the table sends there. Other such packets are answered by RST, so that nobody waits.
 * Everything else is the host's affair: it has no socket at a service's address, so it answers RST to clients that cannot be
 * served, and a port unreachable to datagrams.
 *
 * Entries begin in `half`, an LRU table. When both sides have been heard (TCP: the client's answer to the SYN-ACK; UDP: the
 * client's next datagram after an answer) they move to `flows`, where nothing is ever evicted: a flood of spoofed packets
 * cannot finish a handshake, so it only displaces its like. `flows` is bounded; whoever finds it full stays in `half`. Only what
 * is in `flows` counts as active, and limits are asked twice: before a flow begins, and exactly when it is counted, for a burst of
 * handshakes asks the first time before any of them counts. Entries leave either table by the hand of the process in user space, some time after their
 * end, so that late packets still find their way; it also ends what is idle. The end itself is told here, once (FLOW_ENDED of
 * the client's entry is taken by an atomic or), through `events`.
 *
 * A snapshot (services, pools, slots) is written into the bank that is not in force, and comes into force by one store to
 * `state`. Backends and listeners lie outside the banks, in places that are theirs as long as anything refers to them.
 *
 * In mode nat, clients share the ports that backends see. A backend that ends a connection first remembers its pair of ports for a
 * minute, and takes a SYN over them only if its timestamp is newer than what it saw there last (RFC 6191); or the client would have
 * to wait for its next try. Clocks of clients have nothing to do with each other, so backends see one clock, that of this host:
 * timestamps of clients are moved to it, and echoes of them moved back.
 *
 * To end a connection, the process in user space makes an RST for either side and has it injected as if the other had sent it; so
 * it finds its way, and ends the flow, like any other packet. A mark tells it from others, which nothing from outside can bear. Its
 * number follows all that has passed here until then. If some of that was lost, the receiver takes the number for a guess and asks
 * (RFC 5961, 3.2); whatever comes from then on is answered by RST with exactly the number that is expected.
 *
 * What this never does: it does not loop over anything that grows, does not wait, does not touch a packet of somebody else, and
 * passes on nothing that it could not rewrite completely.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/pkt_cls.h>

#include "weir.h"

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
/* Verified where it is called: what a pointer is there is known, and none of them can be null. */
#define APART static __attribute__((noinline))
#define AF_INET 2
#define AF_INET6 10
#define bpf_htons(x) __builtin_bswap16(x)
#define bpf_htonl(x) __builtin_bswap32(x)

/* By number, as the kernel documents them: no library is needed. */
static void *(*map_lookup)(void *map, const void *key) = (void *)1;
static long (*map_update)(void *map, const void *key, const void *value, __u64 flags) = (void *)2;
static long (*map_delete)(void *map, const void *key) = (void *)3;
static __u32 (*prandom)(void) = (void *)7;
static __u32 (*cpu)(void) = (void *)8;
static long (*store_bytes)(struct __sk_buff *skb, __u32 at, const void *from, __u32 length, __u64 flags) = (void *)9;
static long (*redirect)(__u32 ifindex, __u64 flags) = (void *)23;
static long (*clone_redirect)(struct __sk_buff *skb, __u32 ifindex, __u64 flags) = (void *)13;
static long (*l4_csum_replace)(struct __sk_buff *skb, __u32 at, __u64 from, __u64 to, __u64 flags) = (void *)11;
static long (*load_bytes)(const struct __sk_buff *skb, __u32 at, void *to, __u32 length) = (void *)26;
static long (*change_tail)(struct __sk_buff *skb, __u32 length, __u64 flags) = (void *)38;
static __s64 (*csum_update)(struct __sk_buff *skb, __u32 sum) = (void *)40;
static __s64 (*csum_diff)(const void *from, __u32 from_size, const void *to, __u32 to_size, __u32 seed) = (void *)28;
static long (*fib_lookup)(void *ctx, struct bpf_fib_lookup *params, int length, __u32 flags) = (void *)69;
static void *(*ringbuf_reserve)(void *ring, __u64 size, __u64 flags) = (void *)131;
static void (*ringbuf_submit)(void *data, __u64 flags) = (void *)132;
static long (*redirect_neigh)(__u32 ifindex, struct bpf_redir_neigh *params, int length, __u64 flags) = (void *)152;
static __u64 (*ktime_ns)(void) = (void *)5;
static long (*adjust_room)(struct __sk_buff *skb, __s32 difference, __u32 mode, __u64 flags) = (void *)50;
static long (*check_mtu)(void *ctx, __u32 ifindex, __u32 *mtu, __s32 diff, __u64 flags) = (void *)163;

struct map {
	__u32 type;
	__u32 key_size;
	__u32 value_size;
	__u32 max_entries;
	__u32 map_flags;
	__u32 id;
	__u32 pinning;
};

/* Packets of our own in a second, by kind. */
enum { BUDGET_RESETS, BUDGET_TOO_BIGS, BUDGET_REFUSALS, BUDGET_RECORDS, BUDGETS };
struct budget {
	__u64 second;
	__u64 sent;
};

/* Where a source is counted. In memory, where the verifier does not follow each value. */
struct search {
	__u64 hash;
	/* Its two buckets, how many slots of each are free, and one that is. */
	__u32 buckets[2];
	__u32 room[2];
	__u32 vacant[2];
	/* Its slot, plus one; those of the second bucket come after those of the first. */
	__u32 slot;
	__u32 live;
};

/* The loader sets the sizes of those that depend on the configuration. */
#define MAP(name, kind, key, value, entries, flags) \
	struct map SEC("maps") name = {kind, sizeof(key), sizeof(value), entries, flags, 0, 0}

MAP(state, BPF_MAP_TYPE_ARRAY, __u32, struct state, 1, BPF_F_MMAPABLE);
MAP(services, BPF_MAP_TYPE_HASH, struct service_key, struct service, 8192, 0);
MAP(pools, BPF_MAP_TYPE_ARRAY, __u32, struct pool, 512, BPF_F_MMAPABLE);
MAP(table, BPF_MAP_TYPE_ARRAY, __u32, struct slot, 524288, BPF_F_MMAPABLE);
MAP(listeners, BPF_MAP_TYPE_ARRAY, __u32, struct listener, 1024, BPF_F_MMAPABLE);
MAP(backends, BPF_MAP_TYPE_ARRAY, __u32, struct backend, 4096, BPF_F_MMAPABLE);
MAP(flows, BPF_MAP_TYPE_HASH, struct tuple, struct flow, 524288, BPF_F_NO_PREALLOC);
MAP(half, BPF_MAP_TYPE_LRU_HASH, struct tuple, struct flow, 65536, 0);
MAP(fragments, BPF_MAP_TYPE_LRU_HASH, struct tuple, struct flow, 4096, 0);
/* Conversations with backends past the services, as the backend sends. */
MAP(direct, BPF_MAP_TYPE_LRU_HASH, struct tuple, __u32, 8192, 0);
MAP(budgets, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct budget, BUDGETS, 0);
MAP(listener_tallies, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct tally, 1024, 0);
MAP(backend_tallies, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct tally, 4096, 0);
MAP(drops, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, __u64, DROPS, 0);
MAP(scratch, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct flow, 2, 0);
MAP(ports, BPF_MAP_TYPE_ARRAY, __u32, struct ports, 1, BPF_F_MMAPABLE);
/* Who may come: in two banks, as pools. */
MAP(guards, BPF_MAP_TYPE_ARRAY, __u32, struct guard, 2048, BPF_F_MMAPABLE);
MAP(networks, BPF_MAP_TYPE_LPM_TRIE, struct network, __u32, 8192, BPF_F_NO_PREALLOC);
/* When a source's bucket will be full again. Sources that have not come for longest are forgotten. */
MAP(meters, BPF_MAP_TYPE_LRU_HASH, struct source, __u64, 65536, 0);
MAP(sources, BPF_MAP_TYPE_ARRAY, __u32, struct bucket, 65536, BPF_F_MMAPABLE);
MAP(process, BPF_MAP_TYPE_ARRAY, __u32, struct process, 1, BPF_F_MMAPABLE);
MAP(searches, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct search, 1, 0);
struct map SEC("maps") events = {BPF_MAP_TYPE_RINGBUF, 0, 0, 1 << 20, 0, 0, 0};

#define TCP_FIN 1u
#define TCP_SYN 2u
#define TCP_RST 4u
#define TCP_ACK 16u

/* 65,537 is what src/balance/maglev.rs fills; the rest of that file is repeated in `by_hash` and what it calls. */
#define SLOTS 65537u
#define PROBES 64
#define EXTENSIONS 4
#define PORT_TRIES 27
/* The same at each of several addresses. */
#define SOURCE_TRIES 8
/* After its end a flow's port may serve another from then on. */
#define REUSE_NS 500000000ull
/* What is not established may be displaced when it has been quiet for so long: longer than a handshake takes to go on. */
#define DISPLACE_NS 250000000ull
#define LEAST_SEEN 64
/* Of those that take work: so many are asked for the mean of bounded_load, and so many when nearly all others are out. */
#define MEAN_SEEN 256
#define NEAREST_SEEN 128
/* In 1/2^32. */
#define ONE (1ull << 32)
#define LN_2 2977044472ull
#define OPTIONS 12
#define ROUTE_SECONDS 1
/* RSTs to strays in a second, on each CPU: clients of a node that has gone are told soon, and floods are not answered. */
#define RESETS_MAX 4096
/* What injected packets bear, plus their kind. No mark survives a wire. */
#define INJECT_MARK 0x77656972u
/* The same of errors about packets that are too big: whoever heeds them needs one. */
#define TOO_BIGS_MAX 1024
/* Who is turned away is told so by so many RSTs, and recorded so often, in a second on each CPU. */
#define REFUSALS_TOLD_MAX 4096
#define RECORDS_MAX 256
/* What two processors do to a word at the same time is tried again. */
#define SWAP_TRIES 8
#define ENTER_TRIES 3
/* How much of such a packet is sent back; RFC 792 asks for its header and 8 bytes, RFC 4443 for as much as fits. */
#define QUOTED 128

enum fragment { WHOLE, FIRST, LATER };

/* What a packet without a flow does. */
enum entrance {
	/* Opens one. */
	OPENS,
	/* Is from the middle of one; as the client sends. */
	JOINS,
	/* The same, and the packet is the backend's. */
	ANSWERS,
	/* The same, and there is more than one address that it could be for. */
	ANSWERS_MANY,
};

struct packet {
	struct tuple key;
	/* From the start of the frame. */
	__u32 l3;
	__u32 l4;
	__u32 payload;
	__u32 fragment_id;
	__u8 fragment;
	__u8 is_v6;
	__u8 hops;
	__u8 flags;
	__u8 entrance;
	/* One of `enum inject_kind`; 0: from a wire. */
	__u8 injected;
	/* There was a backend, and it was full. */
	__u8 full;
	/* It is turned away. */
	__u8 refused;
	/* What the guard makes of its flow: FLOW_* */
	__u32 guarded;
	/* IPv4: as it is. */
	__u16 check;
	__u16 l4_check;
	/* TCP: bytes of the header, options included. */
	__u16 header;
	__u16 pad;
	__u32 seq;
	__u32 ack;
	/* The client's port if it may be one of ours, else 0. */
	__u32 own;
	/* Of its source (BALANCE_HASH). */
	__u64 source;
	/* What those have together who take work and have room, and their weight; 0 = that is not looked at. */
	__u64 mean_total;
	__u64 mean_weight;
};

MAP(packets, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct packet, 1, 0);

enum { PASS = TC_ACT_UNSPEC, DROP = TC_ACT_SHOT };

INLINE void count_drop(__u32 why)
{
	__u64 *n = map_lookup(&drops, &why);
	if (n)
		*n += 1;
}

INLINE int drop(__u32 why)
{
	count_drop(why);
	return DROP;
}

INLINE __u64 mix(__u64 z)
{
	z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
	z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
	return z ^ (z >> 31);
}

INLINE __u64 mix2(__u64 a, __u64 b)
{
	return mix(mix(a + 0x9E3779B97F4A7C15ull) ^ b);
}

/* ---- what a packet is ---- */

/* Reads addresses and ports. False: not for this program. */
APART int parse(struct __sk_buff *skb, struct packet *p)
{
	__u32 proto, at;

	__builtin_memset(p, 0, sizeof(*p));
	p->l3 = at = ETH_HLEN;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct {
			__u8 version;
			__u8 tos;
			__u16 length;
			__u16 id;
			__u16 offset;
			__u8 hops;
			__u8 protocol;
			__u16 check;
			__u32 src;
			__u32 dst;
		} ip;
		__u32 header;

		if (load_bytes(skb, at, &ip, sizeof(ip)))
			return 0;
		header = (ip.version & 15) * 4;
		if (ip.version >> 4 != 4 || header < 20)
			return 0;
		p->key.src[2] = p->key.dst[2] = bpf_htonl(0xffff);
		p->key.src[3] = ip.src;
		p->key.dst[3] = ip.dst;
		p->hops = ip.hops;
		p->check = ip.check;
		proto = ip.protocol;
		if (ip.offset & bpf_htons(0x1fff))
			p->fragment = LATER;
		else if (ip.offset & bpf_htons(0x2000))
			p->fragment = FIRST;
		p->fragment_id = ip.id;
		at += header;
		p->payload = bpf_htons(ip.length) - header;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct {
			__u32 version;
			__u16 length;
			__u8 next;
			__u8 hops;
			__u32 src[4];
			__u32 dst[4];
		} ip;

		if (load_bytes(skb, at, &ip, sizeof(ip)))
			return 0;
		p->is_v6 = 1;
		__builtin_memcpy(p->key.src, ip.src, 16);
		__builtin_memcpy(p->key.dst, ip.dst, 16);
		p->hops = ip.hops;
		proto = ip.next;
		at += sizeof(ip);
		for (int i = 0; i < EXTENSIONS; i++) {
			struct {
				__u8 next;
				__u8 length;
				__u16 offset;
				__u32 id;
			} extension;

			if (proto != IPPROTO_HOPOPTS && proto != IPPROTO_DSTOPTS && proto != IPPROTO_ROUTING &&
			    proto != IPPROTO_FRAGMENT)
				break;
			if (p->fragment == LATER || load_bytes(skb, at, &extension, sizeof(extension)))
				break;
			if (proto == IPPROTO_FRAGMENT) {
				p->fragment = extension.offset & bpf_htons(0xfff8) ? LATER : FIRST;
				/* An atomic fragment is whole. */
				if (!(extension.offset & bpf_htons(0xfff9)))
					p->fragment = WHOLE;
				p->fragment_id = extension.id;
				at += 8;
			} else {
				at += (extension.length + 1) * 8;
			}
			proto = extension.next;
		}
		p->payload = skb->len - at;
	} else {
		return 0;
	}
	p->key.protocol = proto;
	p->l4 = at;
	if (p->fragment == LATER)
		return proto == IPPROTO_TCP || proto == IPPROTO_UDP;
	if (proto == IPPROTO_TCP) {
		struct {
			__u16 sport;
			__u16 dport;
			__u32 seq;
			__u32 ack;
			__u8 offset;
			__u8 flags;
			__u16 window;
			__u16 check;
			__u16 urgent;
		} tcp;
		__u32 header;

		if (load_bytes(skb, at, &tcp, sizeof(tcp)))
			return 0;
		header = (tcp.offset >> 4) * 4;
		if (header < 20)
			return 0;
		p->key.sport = tcp.sport;
		p->key.dport = tcp.dport;
		p->flags = tcp.flags;
		p->l4_check = tcp.check;
		p->header = header;
		p->seq = bpf_htonl(tcp.seq);
		p->ack = bpf_htonl(tcp.ack);
		/* A merged packet may be longer than its length field can say. */
		p->payload = skb->len - at;
		p->payload = p->payload > header ? p->payload - header : 0;
	} else if (proto == IPPROTO_UDP) {
		struct {
			__u16 sport;
			__u16 dport;
			__u16 length;
			__u16 check;
		} udp;

		if (load_bytes(skb, at, &udp, sizeof(udp)))
			return 0;
		p->key.sport = udp.sport;
		p->key.dport = udp.dport;
		p->l4_check = udp.check;
		p->payload = p->payload > 8 ? p->payload - 8 : 0;
	} else {
		return proto == IPPROTO_ICMP || proto == IPPROTO_ICMPV6;
	}
	return 1;
}

INLINE void turn_round(struct tuple *into, const struct tuple *t)
{
	__builtin_memcpy(into->src, t->dst, 16);
	__builtin_memcpy(into->dst, t->src, 16);
	into->sport = t->dport;
	into->dport = t->sport;
	into->protocol = t->protocol;
	into->pad[0] = into->pad[1] = into->pad[2] = 0;
}

INLINE int is_same(const __u32 *a, const __u32 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

INLINE int is_v4(const __u32 *address)
{
	return !address[0] && !address[1] && address[2] == bpf_htonl(0xffff);
}

/* ---- sums ---- */

INLINE __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* Folds a difference into a checksum of 16 bits. */
INLINE __u16 patch(__u16 check, __u32 difference)
{
	return ~fold((__u32)fold(difference) + (__u16)~check);
}

/* A sum that covers addresses elsewhere (a pseudo header); kernels before 6.16 know no flag for IPv6 and need none here. */
INLINE long replace_pseudo(struct __sk_buff *skb, __u32 at, __u32 difference, __u64 flags, int is_v6)
{
	if (is_v6 && !l4_csum_replace(skb, at, 0, difference, flags | BPF_F_PSEUDO_HDR | 1ull << 7))
		return 0;
	return l4_csum_replace(skb, at, 0, difference, flags | BPF_F_PSEUDO_HDR);
}

/* ---- without branches ---- */

/* The verifier follows each way through a loop's body, and in the next round from each again. What decides there is reckoned: 1 or 0,
 * of numbers below 2^63. */
INLINE __u64 is_below(__u64 a, __u64 b)
{
	a -= b;
	/* Or the compiler would make a branch of it. */
	asm volatile("" : "+r"(a));
	return a >> 63;
}

INLINE __u64 is_zero(__u64 a)
{
	return is_below(a, 1);
}

/* `a` if `chosen` is 1, else `b`. */
INLINE __u64 either(__u64 chosen, __u64 a, __u64 b)
{
	return b ^ ((a ^ b) & -chosen);
}

/* Whether a / b < c / d. */
INLINE __u64 is_less(__u64 a, __u32 b, __u64 c, __u32 d)
{
	__u64 left = (__u32)a * (__u64)d, right = (__u32)c * (__u64)b;
	__u64 left_high = (a >> 32) * d + (left >> 32), right_high = (c >> 32) * b + (right >> 32);

	return is_below(left_high, right_high) | (is_zero(left_high ^ right_high) & is_below((__u32)left, (__u32)right));
}

/* ---- choosing a backend ---- */

INLINE struct slot *slot_at(const struct pool *pool, __u32 at)
{
	__u32 ix = pool->table + at;
	return map_lookup(&table, &ix);
}

INLINE __u64 source_key(const struct pool *pool, const struct packet *p)
{
	__u64 key;

	if (!p->is_v6) {
		key = mix2(pool->seed_v4, bpf_htonl(p->key.src[3]) & pool->mask_v4);
	} else {
		__u64 high = (__u64)bpf_htonl(p->key.src[0] & pool->mask_v6[0]) << 32 |
			     bpf_htonl(p->key.src[1] & pool->mask_v6[1]);
		__u64 low = (__u64)bpf_htonl(p->key.src[2] & pool->mask_v6[2]) << 32 |
			    bpf_htonl(p->key.src[3] & pool->mask_v6[3]);
		key = mix2(mix2(pool->seed_v6, high), low);
	}
	return pool->with_port ? mix2(key, bpf_htons(p->key.sport)) : key;
}

/* Whether a backend has room for this packet's connection: one that it has already takes none. */
INLINE __u64 has_room(const struct backend *b, const struct packet *p)
{
	__u64 room = is_zero(b->active_max) | is_below(b->active, b->active_max) | !is_zero(p->entrance ^ OPENS);

	/* A note for whoever finds none; nothing that is chosen depends on it. */
	((struct packet *)p)->full |= !room;
	return room;
}

/* What bounded_load compares with. */
APART int reckon(const struct pool *pool, struct packet *p)
{
	__u64 total = 0, weight = 0;

	for (int i = 0; i < MEAN_SEEN; i++) {
		struct slot *slot;
		struct backend *b;
		__u64 counts;
		__u32 ix;

		if (SLOTS + i >= pool->length)
			break;
		slot = slot_at(pool, SLOTS + i);
		if (!slot)
			break;
		ix = slot->backend;
		b = map_lookup(&backends, &ix);
		if (!b)
			break;
		counts = -has_room(b, p);
		total += b->active & counts;
		weight += b->weight & counts;
	}
	p->mean_total = total;
	p->mean_weight = weight;
	return 0;
}

/* Whether a backend may have another connection: fewer than `bound` times what the mean is for its weight, with this one. */
INLINE __u64 is_under(const struct pool *pool, const struct backend *b, const struct packet *p)
{
	return is_zero(p->mean_weight) |
	       is_less(b->active * p->mean_weight, pool->bound, (p->mean_total + 1) * b->weight, 65536);
}

/* -ln(u) in 1/2^32, u = (drawn + 1/2) / 2^53: `distance` of src/balance/maglev.rs. */
INLINE __u64 distance(__u64 drawn)
{
	__u64 y = 2 * drawn + 1, halvings = 0, z, t, s, more;

#define HALVE(by) \
	more = is_below(y, 1ull << (54 - by)) * by; \
	y <<= more; \
	halvings += more;
	HALVE(32)
	HALVE(16)
	HALVE(8)
	HALVE(4)
	HALVE(2)
	HALVE(1)
#undef HALVE
	z = (((1ull << 54) - y) << 10) / (((1ull << 54) + y) >> 22);
	t = z * z >> 32;
	s = ONE / 15;
	s = ONE / 13 + (s * t >> 32);
	s = ONE / 11 + (s * t >> 32);
	s = ONE / 9 + (s * t >> 32);
	s = ONE / 7 + (s * t >> 32);
	s = ONE / 5 + (s * t >> 32);
	s = ONE / 3 + (s * t >> 32);
	s = ONE + (s * t >> 32);
	return halvings * LN_2 + 2 * (z * s >> 32);
}

/* Nearly all are out. Behind the slots stand those that are not, in order of their identities: the least distance for its weight
 * has it, and who is below the bound comes before who is not. */
APART __u32 nearest(const struct pool *pool, const struct packet *p)
{
	__u64 least = 0, weight = 1, found = 0, found_under = 0;
	__u32 best = 0;

	for (int i = 0; i < NEAREST_SEEN; i++) {
		__u64 to, takes, under;
		struct slot *slot;
		struct backend *b;
		__u32 ix;

		if (SLOTS + i >= pool->length)
			break;
		slot = slot_at(pool, SLOTS + i);
		if (!slot)
			break;
		ix = slot->backend;
		b = map_lookup(&backends, &ix);
		if (!b)
			break;
		to = distance(mix2(p->source, b->identity) >> 11);
		under = is_under(pool, b, p);
		takes = is_zero(found) | is_below(found_under, under) |
			(is_zero(under ^ found_under) & is_below(to * weight, least * slot->weight));
		takes &= has_room(b, p);
		best = either(takes, ix + 1, best);
		least = either(takes, to, least);
		weight = either(takes, slot->weight, weight);
		found_under = either(takes, under, found_under);
		found |= takes;
	}
	return best;
}

/* All of them: index of the backend plus one, or 0. */
INLINE __u32 by_hash(const struct pool *pool, struct packet *p)
{
	__u64 key = source_key(pool, p);
	__u32 at = key % SLOTS;
	__u32 step = 1 + (__u32)(mix2(key, 1) >> 48);

	p->source = key;
	/* A connection that has a backend already is taken for one of its key's: nothing tells whether the bound had moved it. */
	if (pool->bound && p->entrance == OPENS)
		reckon(pool, p);
	for (int probe = 0; probe <= PROBES; probe++) {
		struct slot *slot = slot_at(pool, at);
		if (slot) {
			__u32 ix = slot->backend;
			struct backend *b = map_lookup(&backends, &ix);
			/* Of nobody, nothing. */
			if (b && is_below(mix2(key, b->identity) % 1024, slot->weight) & has_room(b, p) & is_under(pool, b, p))
				return ix + 1;
		}
		at += step;
		if (at >= SLOTS)
			at -= SLOTS;
	}
	return nearest(pool, p);
}

INLINE __u32 by_turn(struct pool *pool, const struct packet *p)
{
	__u64 turn = __sync_fetch_and_add(&pool->turn, 1);

	for (int i = 0; i < LEAST_SEEN; i++) {
		struct slot *slot = slot_at(pool, (turn + i) % pool->length);
		if (slot) {
			__u32 ix = slot->backend;
			struct backend *b = map_lookup(&backends, &ix);
			if (b && (has_room(b, p) & !is_zero(slot->weight)))
				return ix + 1;
		}
	}
	return 0;
}

/* Response times as src/balance/least_time.rs has them, in whole numbers: up to two hours, fractions in 1/2^20. */
#define LATENCY_MAX ((1ull << 43) - 1)
#define LATENCY_UNKNOWN 1000000000ull
/* In so many nanoseconds half of an old time is forgotten: LATENCY_TAU_NS of src/stats.rs, times ln 2. */
#define HALVED_NS 6931471806ull

/* What is left of a time that was learned `at`. */
INLINE __u64 faded(__u64 time, __u64 at, __u64 now)
{
	__u64 age = (now - at) & -is_below(at, now), young = is_below(age, 1ull << 40), halvings, x, left;

	halvings = ((age & -young) << 22) / HALVED_NS;
	/* 2^-x, x < 1, by its series, in 1/2^30; x in 1/2^22. */
	x = halvings & 0x3fffff;
	left = 165394 - (x * 16377 >> 22);
	left = 1431680 - (x * left >> 22);
	left = 10327387 - (x * left >> 22);
	left = 59597083 - (x * left >> 22);
	left = 257941248 - (x * left >> 22);
	left = 744261118 - (x * left >> 22);
	left = 1073741824 - (x * left >> 22);
	halvings >>= 22;
	young &= is_below(halvings, 44);
	return (time * (left >> 10) >> ((20 + halvings) & 63)) & -young;
}

/* A backend has taken so long to answer: a longer time than before counts at once and in full. */
APART int learn(const struct flow *flow, __u64 now)
{
	__u32 ix = flow->backend;
	struct backend *b = map_lookup(&backends, &ix);
	__u64 sample = now - flow->opened, before;

	if (!b)
		return 0;
	if (sample > LATENCY_MAX)
		sample = LATENCY_MAX;
	before = b->latency;
	if (before > sample && before <= LATENCY_MAX)
		sample += faded(before - sample, b->latency_at, now);
	b->latency = sample ? sample : 1;
	b->latency_at = now;
	return 0;
}

/* How long a backend takes, as far as that still counts; 0 = unknown. */
INLINE __u64 latency(const struct backend *b, __u64 now)
{
	__u64 known = b->latency & LATENCY_MAX, left = faded(known, b->latency_at, now);

	return left + (is_zero(left) & !is_zero(known));
}

/* What one more connection costs at a backend, its weight aside. */
INLINE __u64 cost(const struct pool *pool, const struct backend *b, __u64 now)
{
	__u64 active = b->active, time, is_few, is_unknown;

	if (pool->balance != BALANCE_TIME)
		return active + 1;
	/* So that the product has room. */
	is_few = is_below(active, 1 << 20);
	active = either(is_few, active, (1 << 20) - 1);
	time = latency(b, now);
	is_unknown = is_zero(time);
	/* Nothing at all where nobody has tried. */
	return (time + is_unknown * LATENCY_UNKNOWN) * (active + 1) & -!(is_unknown & is_zero(active));
}

/* Of `seen` slots from `first`, the one whose backend costs the least for its weight. */
INLINE __u32 least_of(const struct pool *pool, const struct packet *p, __u32 first, __u32 seen, __u64 now)
{
	__u64 best_cost = 0, best_weight = 1;
	__u32 best = 0;

	for (int i = 0; i < LEAST_SEEN; i++) {
		struct slot *slot;
		struct backend *b;
		__u64 costs, takes;
		__u32 ix;

		if (i >= seen)
			break;
		slot = slot_at(pool, (first + i) % pool->length);
		if (!slot)
			break;
		ix = slot->backend;
		b = map_lookup(&backends, &ix);
		if (!b)
			break;
		costs = cost(pool, b, now);
		takes = is_zero(best) | is_less(costs, slot->weight, best_cost, best_weight);
		takes &= has_room(b, p) & !is_zero(slot->weight);
		best = either(takes, ix + 1, best);
		best_cost = either(takes, costs, best_cost);
		best_weight = either(takes, slot->weight, best_weight);
	}
	return best;
}

APART __u32 choose(struct pool *pool, struct packet *p, __u64 now)
{
	if (!pool->length)
		return 0;
	if (pool->only) {
		__u32 ix = pool->only - 1;
		struct backend *b = map_lookup(&backends, &ix);
		return b && has_room(b, p) ? pool->only : 0;
	}
	switch (pool->balance) {
	case BALANCE_HASH:
		return by_hash(pool, p);
	case BALANCE_TURN:
		return by_turn(pool, p);
	case BALANCE_CHANCE: {
		__u32 one = least_of(pool, p, prandom() % pool->length, 1, now);
		__u32 two = least_of(pool, p, prandom() % pool->length, 1, now);
		__u32 a = one - 1, b = two - 1;
		struct backend *first, *second;
		if (!one || !two)
			break;
		first = map_lookup(&backends, &a);
		second = map_lookup(&backends, &b);
		return first && second && second->active < first->active ? two : one;
	}
	}
	return least_of(pool, p, prandom() % pool->length, pool->length < LEAST_SEEN ? pool->length : LEAST_SEEN, now);
}

/* ---- flows ---- */

INLINE struct flow *find(const struct tuple *key)
{
	struct flow *flow = map_lookup(&flows, key);
	return flow ? flow : map_lookup(&half, key);
}

INLINE void forget(const struct tuple *key, const struct tuple *other)
{
	map_delete(&half, key);
	map_delete(&half, other);
	map_delete(&flows, key);
	map_delete(&flows, other);
}

INLINE void add(__u32 *gauge, int n)
{
	__sync_fetch_and_add(gauge, n);
}

/* Counts a flow as active, or not any more. */
INLINE void count_active(const struct flow *flow, int n)
{
	__u32 ix = flow->listener;
	struct listener *listener = map_lookup(&listeners, &ix);
	struct backend *backend;
	struct process *whole;

	if (listener)
		add(&listener->active, n);
	ix = flow->backend;
	backend = map_lookup(&backends, &ix);
	if (backend)
		add(&backend->active, n);
	ix = 0;
	whole = map_lookup(&process, &ix);
	if (whole)
		add(&whole->active[flow->to.protocol == IPPROTO_UDP], n);
}

INLINE void count_opened(const struct flow *flow)
{
	__u32 ix = flow->listener;
	struct tally *tally = map_lookup(&listener_tallies, &ix);

	if (tally)
		tally->opened++;
	ix = flow->backend;
	tally = map_lookup(&backend_tallies, &ix);
	if (tally)
		tally->opened++;
}

INLINE void count_bytes(const struct flow *flow, __u64 packets, __u64 bytes, int up)
{
	__u32 ix = flow->listener;
	struct tally *one = map_lookup(&listener_tallies, &ix);
	struct tally *two;

	ix = flow->backend;
	two = map_lookup(&backend_tallies, &ix);
	if (!one || !two)
		return;
	one->packets_up += up ? packets : 0;
	one->bytes_up += up ? bytes : 0;
	one->packets_down += up ? 0 : packets;
	one->bytes_down += up ? 0 : bytes;
	two->packets_up += up ? packets : 0;
	two->bytes_up += up ? bytes : 0;
	two->packets_down += up ? 0 : packets;
	two->bytes_down += up ? 0 : bytes;
}

/* ---- limits ---- */

/* What counts as one source. */
INLINE void source_of(struct source *into, const struct listener *listener, const __u32 *address)
{
	int v4 = is_v4(address);

	into->listener = listener->identity;
	into->address[0] = address[0];
	into->address[1] = address[1];
	into->address[2] = v4 ? address[2] : 0;
	into->address[3] = v4 ? address[3] : 0;
}

/* Looks a source up in both of its buckets; src/kernel/sources.rs has the same. Everything is kept in memory, so that the verifier
 * does not follow what each slot may mean for the next. */
APART int look_up(volatile struct search *s)
{
	s->slot = 0;
	s->live = 0;
	s->room[0] = s->room[1] = 0;
	for (int i = 0; i < 2 * BUCKET; i++) {
		__u32 ix = s->buckets[i / BUCKET];
		struct bucket *bucket = map_lookup(&sources, &ix);
		__u64 word;

		if (!bucket)
			return 0;
		word = *(volatile __u64 *)&bucket->slots[i % BUCKET];
		if (!word) {
			s->room[i / BUCKET]++;
			s->vacant[i / BUCKET] = i;
		} else if (word >> COUNT_BITS == s->hash >> COUNT_BITS) {
			s->live += word & COUNT_MAX;
			s->slot = i + 1;
		}
	}
	return 0;
}

INLINE struct search *search_for(const struct listener *listener, const __u32 *address)
{
	__u32 zero = 0;
	struct search *s = map_lookup(&searches, &zero);
	struct process *whole = map_lookup(&process, &zero);
	struct source source;

	if (!s || !whole)
		return 0;
	source_of(&source, listener, address);
	s->hash = mix2(mix2(mix2(whole->seed, source.listener), (__u64)source.address[0] << 32 | source.address[1]),
		       (__u64)source.address[2] << 32 | source.address[3]);
	s->buckets[0] = s->hash & (whole->buckets - 1);
	s->buckets[1] = mix(s->hash >> COUNT_BITS) & (whole->buckets - 1);
	if (s->buckets[0] == s->buckets[1])
		s->buckets[1] ^= 1;
	return s;
}

INLINE __u64 *slot_of(const struct search *s, __u32 at)
{
	__u32 ix = s->buckets[at / BUCKET & 1];
	struct bucket *bucket = map_lookup(&sources, &ix);

	return bucket ? &bucket->slots[at % BUCKET] : 0;
}

/* One flow less in a slot, which is free if it was the last. */
INLINE void lower(__u64 *slot)
{
	__u64 was = __sync_fetch_and_add(slot, -1ull);

	if ((was & COUNT_MAX) == 1)
		__sync_val_compare_and_swap(slot, was - 1, 0);
}

/* Counts one more flow of a source, unless there are `max`. */
APART int enter_source(struct search *s, __u32 max)
{
	for (int i = 0; i < ENTER_TRIES; i++) {
		__u64 *slot, was, own = s->hash >> COUNT_BITS;
		__u32 nth;

		look_up(s);
		if (s->live >= max)
			return 0;
		nth = s->room[1] > s->room[0];
		if (!s->slot && !s->room[nth])
			return 0;
		slot = slot_of(s, s->slot ? s->slot - 1 : s->vacant[nth]);
		if (!slot)
			return 0;
		if (!s->slot) {
			if (!__sync_val_compare_and_swap(slot, 0, own << COUNT_BITS | 1))
				return 1;
			continue;
		}
		was = __sync_fetch_and_add(slot, 1);
		if (was >> COUNT_BITS == own && (was & COUNT_MAX) < max)
			return 1;
		/* Another's by now, or as many as may be. */
		lower(slot);
	}
	return 0;
}

/* One less. Whoever leaves holds the slot: it cannot be free. */
APART int leave_source(struct search *s)
{
	__u64 *slot;

	look_up(s);
	slot = s->slot ? slot_of(s, s->slot - 1) : 0;
	if (slot)
		lower(slot);
	return 0;
}

/* Whether a source comes too often; if it does not, and `take`, it has come once more. GCRA, as in src/balance/limits.rs. */
APART int too_often(struct guard *guard, struct source *source, __u64 now, int take)
{
	__u64 *full_at = map_lookup(&meters, source);

	if (!full_at) {
		__u64 first = now + guard->cost;

		if (guard->cost > guard->depth)
			return 1;
		if (!take || !map_update(&meters, source, &first, BPF_NOEXIST))
			return 0;
		full_at = map_lookup(&meters, source);
		if (!full_at)
			return 0;
	}
	for (int i = 0; i < SWAP_TRIES; i++) {
		__u64 was = *(volatile __u64 *)full_at;
		__u64 from = was > now ? was : now;

		if (from - now + guard->cost > guard->depth)
			return 1;
		if (!take || __sync_val_compare_and_swap(full_at, was, from + guard->cost) == was)
			return 0;
	}
	return 1;
}

/* The guard of an address that clients use. */
INLINE struct guard *guard_at(__u32 guard)
{
	__u32 ix = guard - 1;
	return guard ? map_lookup(&guards, &ix) : 0;
}

/* What a guard, by its place plus one, says of an address. Deny wins over allow, whatever their lengths: `networks` is written so. */
INLINE __u32 verdict_of(const struct guard *guard, __u32 place, const __u32 *address)
{
	struct network network;
	__u32 *verdict;

	if (!guard->listed)
		return guard->otherwise;
	network.length = 32 + 128;
	network.guard = (place - 1) * 2 + is_v4(address);
	__builtin_memcpy(network.address, address, 16);
	verdict = map_lookup(&networks, &network);
	return verdict ? *verdict : guard->otherwise;
}

/* Whether somebody may come: 0, or what is against it, plus one. Nothing is counted before both sides have confirmed (`enter_all`),
 * or spoofed packets would use up what is another's; but UDP proves nothing, so its meter is asked at once. */
APART int judge(struct packet *p, struct service *service, struct listener *listener, __u64 now)
{
	__u32 zero = 0, udp = p->key.protocol == IPPROTO_UDP, verdict = VERDICT_EXEMPT, place = service->guard;
	struct process *whole = map_lookup(&process, &zero);
	struct guard *guard = guard_at(place);
	struct source source;
	struct search *s;

	if (guard) {
		verdict = verdict_of(guard, place, p->key.src);
		p->guarded = FLOW_GUARDED;
		if (verdict & VERDICT_DENIED)
			return 1 + REFUSED_DENIED;
	}
	/* What is open elsewhere already is not new. */
	if (p->entrance != OPENS)
		return 0;
	if (whole && whole->active[udp] >= whole->active_max[udp])
		return 1 + REFUSED_PROCESS;
	if (listener->active_max && listener->active >= listener->active_max)
		return 1 + REFUSED_LISTENER;
	if (!guard || verdict & VERDICT_EXEMPT)
		return 0;
	if (guard->per_source) {
		s = search_for(listener, p->key.src);
		if (!s)
			return 0;
		look_up(s);
		if (s->live >= guard->per_source || !(s->slot || s->room[0] || s->room[1]))
			return 1 + REFUSED_SOURCE;
	}
	if (guard->cost) {
		source_of(&source, listener, p->key.src);
		if (too_often(guard, &source, now, udp))
			return 1 + REFUSED_RATE;
		if (udp)
			p->guarded |= FLOW_METERED;
	}
	return 0;
}

/* Counts a flow at its source; 0, or what is against it, plus one. */
APART int enter_guarded(struct tuple *key, struct flow *up, struct listener *listener, __u64 now)
{
	__u32 zero = 0;
	struct state *in_force = map_lookup(&state, &zero);
	struct service_key wanted = {};
	struct service *service;
	struct guard *guard;
	struct source source;
	struct search *s;
	int is_new = !(up->flags & (FLOW_JOINED | FLOW_LET_IN));

	if (!in_force)
		return 0;
	wanted.port = key->dport;
	wanted.protocol = key->protocol;
	wanted.bank = in_force->bank & 1;
	__builtin_memcpy(wanted.address, key->dst, 16);
	service = map_lookup(&services, &wanted);
	/* Of a listener that has gone meanwhile. */
	if (!service)
		return 0;
	guard = guard_at(service->guard);
	if (!guard || verdict_of(guard, service->guard, key->src) & VERDICT_EXEMPT)
		return 0;
	if (guard->per_source) {
		s = search_for(listener, key->src);
		if (!s || !enter_source(s, is_new ? guard->per_source : COUNT_MAX))
			return 1 + REFUSED_SOURCE;
		__sync_fetch_and_or(&up->flags, FLOW_SOURCED);
	}
	if (guard->cost && is_new && !(up->flags & FLOW_METERED)) {
		source_of(&source, listener, key->src);
		if (too_often(guard, &source, now, 1))
			return 1 + REFUSED_RATE;
		__sync_fetch_and_or(&up->flags, FLOW_METERED);
	}
	return 0;
}

/* Counts a flow that both sides have confirmed, exactly, over all processors: 0, or what is against it, plus one; then `leave_all`
 * is due. */
APART int enter_all(struct tuple *key, struct flow *up, __u64 now)
{
	__u32 zero = 0, udp = key->protocol == IPPROTO_UDP, ix = up->listener, why = 0;
	struct process *whole = map_lookup(&process, &zero);
	struct listener *listener = map_lookup(&listeners, &ix);
	struct backend *backend;
	int is_new = !(up->flags & (FLOW_JOINED | FLOW_LET_IN));

	ix = up->backend;
	backend = map_lookup(&backends, &ix);
	if (!whole || !listener || !backend)
		return 0;
	add(&backend->active, 1);
	if (__sync_fetch_and_add(&listener->active, 1) >= listener->active_max && listener->active_max && is_new)
		why = 1 + REFUSED_LISTENER;
	if (__sync_fetch_and_add(&whole->active[udp], 1) >= whole->active_max[udp] && is_new)
		why = 1 + REFUSED_PROCESS;
	if (!why && up->flags & FLOW_GUARDED)
		why = enter_guarded(key, up, listener, now);
	return why;
}

/* A flow that was counted is over. */
APART int leave_all(struct tuple *key, struct flow *up)
{
	__u32 ix = up->listener;
	struct listener *listener = map_lookup(&listeners, &ix);
	struct search *s;

	count_active(up, -1);
	if (listener && up->flags & FLOW_SOURCED) {
		s = search_for(listener, key->src);
		if (s)
			leave_source(s);
	}
	return 0;
}

/* Tells of the end of a flow; `up` is its client's entry under `key`. */
APART int end(struct tuple *key, struct flow *up, struct flow *down, __u64 now, __u32 how)
{
	struct ended *ended;

	if (__sync_fetch_and_or(&up->flags, FLOW_ENDED) & FLOW_ENDED)
		return 0;
	if (up->flags & FLOW_OPEN)
		leave_all(key, up);
	else if (up->flags & FLOW_JOINED)
		/* Anybody can send something from the middle of a connection; this one was none. */
		return 0;
	ended = ringbuf_reserve(&events, sizeof(*ended), 0);
	if (!ended) {
		count_drop(DROP_UNTOLD);
		return 0;
	}
	ended->key = *key;
	ended->up = *up;
	ended->packets_down = down ? down->packets : 0;
	ended->bytes_down = down ? down->bytes : 0;
	ended->at = now;
	ended->end = how;
	ended->first_byte_us = down ? down->first_byte_us : 0;
	ringbuf_submit(ended, 0);
	return 0;
}

/* Whether this packet of a flow's client shows that both sides have been heard. */
INLINE int settles(const struct flow *flow, const struct packet *p)
{
	if ((flow->flags & (FLOW_CLIENT | FLOW_OPEN | FLOW_ENDED)) != FLOW_CLIENT)
		return 0;
	if (p->key.protocol == IPPROTO_UDP)
		return flow->flags & FLOW_ANSWERED;
	if ((p->flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) != TCP_ACK)
		return 0;
	if (flow->flags & FLOW_ANSWERED)
		return 1;
	/* Where answers are not seen, one packet from the middle of a connection proves nothing. */
	return flow->flags & FLOW_DSR && (!(flow->flags & FLOW_JOINED) || flow->packets);
}

/* Both sides have been heard: moves a flow where no flood reaches it. `key` is the client's. 0, or which limit is against it, plus
 * one: then it has ended. */
APART int settle(struct tuple *key, __u64 now)
{
	struct flow *up, *down;
	struct tuple other;
	int why;

	up = map_lookup(&half, key);
	if (!up)
		return 0;
	turn_round(&other, &up->to);
	down = map_lookup(&half, &other);
	if (!down && !(up->flags & FLOW_DSR))
		return 0;
	if (__sync_fetch_and_or(&up->flags, FLOW_OPEN) & FLOW_OPEN)
		return 0;
	why = enter_all(key, up, now);
	if (!why && !map_update(&flows, key, up, BPF_NOEXIST)) {
		if (!down || !map_update(&flows, &other, down, BPF_NOEXIST)) {
			if (key->protocol == IPPROTO_TCP)
				count_opened(up);
			map_delete(&half, key);
			map_delete(&half, &other);
			return 0;
		}
		map_delete(&flows, key);
	}
	leave_all(key, up);
	__sync_fetch_and_and(&up->flags, ~(FLOW_OPEN | FLOW_SOURCED));
	if (!why) {
		count_drop(DROP_FLOWS);
		__sync_fetch_and_or(&up->flags, FLOW_LET_IN);
	} else if (key->protocol == IPPROTO_TCP) {
		/* Whoever of them still speaks is reset. */
		__sync_fetch_and_or(&up->flags, FLOW_ENDED | FLOW_CUT);
		if (down)
			__sync_fetch_and_or(&down->flags, FLOW_CUT);
	}
	return why;
}

/* Looks up the way that a flow's packets take. */
APART int find_way(struct __sk_buff *skb, struct flow *flow, __u32 fallback, __u32 seconds)
{
	struct bpf_fib_lookup way = {};
	struct backend *backend;
	__u32 ix;
	long found;

	ix = flow->backend;
	flow->routed = seconds;
	way.ifindex = skb->ifindex;
	way.l4_protocol = flow->to.protocol;
	if (is_v4(flow->to.dst)) {
		way.family = AF_INET;
		way.ipv4_src = flow->to.src[3];
		way.ipv4_dst = flow->to.dst[3];
	} else {
		way.family = AF_INET6;
		__builtin_memcpy(way.ipv6_src, flow->to.src, 16);
		__builtin_memcpy(way.ipv6_dst, flow->to.dst, 16);
	}
	if (flow->flags & FLOW_DSR) {
		backend = map_lookup(&backends, &ix);
		if (!backend)
			return 0;
		if (way.family == AF_INET)
			way.ipv4_dst = backend->address[3];
		else
			__builtin_memcpy(way.ipv6_dst, backend->address, 16);
	}
	found = fib_lookup(skb, &way, sizeof(way), 0);
	if (found == BPF_FIB_LKUP_RET_SUCCESS || found == BPF_FIB_LKUP_RET_NO_NEIGH) {
		flow->ifindex = way.ifindex;
		flow->hop_family = way.family;
		if (way.family == AF_INET) {
			flow->hop[0] = way.ipv4_dst;
			flow->hop[1] = flow->hop[2] = flow->hop[3] = 0;
		} else {
			__builtin_memcpy(flow->hop, way.ipv6_dst, 16);
		}
		flow->flags |= FLOW_HOP;
	} else if (!flow->ifindex) {
		/* Nothing is forwarded here, so only neighbours and what the host itself reaches that way. */
		flow->ifindex = fallback;
		if (flow->flags & FLOW_DSR) {
			flow->hop_family = way.family;
			backend = map_lookup(&backends, &ix);
			if (backend && way.family == AF_INET)
				flow->hop[0] = backend->address[3];
			else if (backend)
				__builtin_memcpy(flow->hop, backend->address, 16);
			flow->flags |= FLOW_HOP;
		}
	}
	return 0;
}

/* The nth of the ports for mode nat; 0: there are not so many. */
INLINE __u32 nth_port(const struct ports *usable, __u64 nth)
{
	__u64 port = 0, found = 0;

#pragma clang loop unroll(full)
	for (int i = 0; i < PORT_RANGES; i++) {
		__u64 length = usable->ranges[i].length, here = is_below(nth, length) & !found;

		port = either(here, usable->ranges[i].first + nth, port);
		found |= here;
		nth -= length & -!found;
	}
	return port;
}

INLINE __u64 is_usable(const struct ports *usable, __u32 port)
{
	__u64 is = 0;

#pragma clang loop unroll(full)
	for (int i = 0; i < PORT_RANGES; i++)
		is |= is_below(port - usable->ranges[i].first, usable->ranges[i].length);
	return is;
}

/* Enters a flow's way back under a key, unless that is taken. What ended some time ago makes room: or a backend could only have
 * as many connections in the time that entries stay after their end as there are ports. If `pressed`, so does what is not
 * established and has been quiet: or a flood, which half-opens all that there are, would leave none to others. */
APART int take_port(struct tuple *key, struct flow *down, __u64 now, int pressed)
{
	struct flow *old = map_lookup(&flows, key), *up;
	struct tuple other;

	if (old) {
		turn_round(&other, &old->to);
		up = map_lookup(&flows, &other);
		if (!up)
			return 1;
		if (!is_zero(up->id ^ old->id) | is_zero(up->flags & FLOW_ENDED) | is_below(now, up->last + REUSE_NS) |
		    is_below(now, old->last + REUSE_NS))
			return 1;
		map_delete(&flows, &other);
		map_delete(&flows, key);
	} else if (pressed) {
		old = map_lookup(&half, key);
		if (old && now > old->last + DISPLACE_NS) {
			turn_round(&other, &old->to);
			up = map_lookup(&half, &other);
			if (up && up->id == old->id)
				map_delete(&half, &other);
			map_delete(&half, key);
		}
	}
	return map_update(&half, key, down, BPF_NOEXIST) != 0;
}

/* Which of a pool's own addresses is the first to be tried for a client. */
INLINE __u32 first_source(const struct pool *pool, const struct packet *p)
{
	__u64 high = (__u64)p->key.src[0] << 32 | p->key.src[1], low = (__u64)p->key.src[2] << 32 | p->key.src[3];

	return mix2(mix2(high, low), p->key.sport) % pool->sources_count;
}

/* Enters a flow's way back under an address and a port of this host's that are free, and says which in `key`. At each address the
 * client's own port is tried, and then others by chance; when all of these are taken, it is the turn of the pool's next address. */
APART int take_source(struct pool *pool, struct packet *p, struct tuple *key, struct flow *down, __u64 now)
{
	/* Read each time: what the verifier has found out of them in one round would count in the others. */
	volatile __u32 *count = &pool->sources_count;
	volatile __u32 *own = &p->own;
	__u32 zero = 0;
	struct ports *usable = map_lookup(&ports, &zero);

	if (!usable || !usable->total)
		return 1;
	*own = bpf_htons(p->key.sport) * is_usable(usable, bpf_htons(p->key.sport));
	for (__u32 i = 0; i < SOURCES * SOURCE_TRIES; i++) {
		__u32 nth = i / SOURCE_TRIES, is_first = !(i % SOURCE_TRIES), port, total;

		if (*count > 1 ? nth >= *count : i >= PORT_TRIES)
			break;
		if (is_first && (!i || *count > 1) && *count) {
			nth = (first_source(pool, p) + nth) % *count;
			__builtin_memcpy(key->dst, pool->sources[nth & (SOURCES - 1)], 16);
		}
		/* Each by itself: fixed steps would meet the runs of taken ports that they have made. */
		total = usable->total;
		port = nth_port(usable, prandom() % (total + is_zero(total)));
		key->dport = bpf_htons((__u16)either(is_first & !is_zero(*own), *own, port));
		if (!take_port(key, down, now, i >= PORT_TRIES / 3))
			return 0;
	}
	return 1;
}

/* What cannot be passed on as it is. Over IPv6 a datagram has a checksum. */
INLINE int is_undeliverable(const struct packet *p)
{
	if (p->hops <= 1) {
		count_drop(DROP_TTL);
		return 1;
	}
	if (p->key.protocol == IPPROTO_UDP && p->is_v6 && !p->l4_check) {
		count_drop(DROP_MALFORMED);
		return 1;
	}
	return 0;
}

/* An answer without a flow, of a backend whose clients follow from a table: `p` becomes what the client would send. 0: whatever
 * it is, it may enter. */
APART int turn_to_client(struct packet *p)
{
	__u32 zero = 0;
	struct state *in_force = map_lookup(&state, &zero);
	struct service_key key = {};
	struct service *service;
	struct tuple other;

	if (!in_force || !(in_force->joins >> (in_force->bank & 1) & 1))
		return 0;
	key.bank = in_force->bank & 1;
	key.protocol = p->key.protocol;
	key.port = p->key.dport;
	__builtin_memcpy(key.address, p->key.dst, 16);
	service = map_lookup(&services, &key);
	if (service && service->kind == SERVICE_CLIENTS)
		return 0;
	if (service && service->kind != SERVICE_HOST) {
		/* Somebody speaks to the backend itself. */
		turn_round(&other, &p->key);
		map_update(&direct, &other, &zero, BPF_ANY);
		return PASS;
	}
	key.port = p->key.sport;
	__builtin_memcpy(key.address, p->key.src, 16);
	service = map_lookup(&services, &key);
	if (!service || (service->kind != SERVICE_ANSWERS && service->kind != SERVICE_ANSWERS_MANY))
		return PASS;
	if (p->flags & TCP_SYN) {
		/* The other half of a handshake that has begun elsewhere, past the service. */
		map_update(&direct, &p->key, &zero, BPF_ANY);
		return PASS;
	}
	if (map_lookup(&direct, &p->key))
		return PASS;
	key.port = 0;
	key.protocol = 0;
	__builtin_memcpy(key.address, p->key.dst, 16);
	if (map_lookup(&services, &key))
		return PASS;
	__builtin_memcpy(p->key.src, p->key.dst, 16);
	__builtin_memcpy(p->key.dst, service->address, 16);
	p->key.sport = p->key.dport;
	p->key.dport = service->port;
	p->entrance = service->kind == SERVICE_ANSWERS ? ANSWERS : ANSWERS_MANY;
	return 0;
}

/* Whether another packet of our own of this kind may be sent within the present second. */
INLINE int may_send(__u32 kind, __u64 max, __u64 now)
{
	struct budget *budget = map_lookup(&budgets, &kind);

	if (!budget)
		return 0;
	if (budget->second != now / 1000000000ull) {
		budget->second = now / 1000000000ull;
		budget->sent = 0;
	}
	return budget->sent++ < max;
}

/* Puts the headers of an answer in the place of a packet's own, for `length` bytes that follow them: back to the neighbour that it
 * came from, and from where it went to whoever sent it. */
INLINE int turn_back(struct __sk_buff *skb, const struct packet *p, const __u8 *macs, __u8 protocol, __u8 tos, __u16 length)
{
	if (store_bytes(skb, 0, macs + 6, 6, BPF_F_RECOMPUTE_CSUM) || store_bytes(skb, 6, macs, 6, BPF_F_RECOMPUTE_CSUM))
		return 1;
	if (p->is_v6) {
		struct {
			__u32 version;
			__u16 length;
			__u8 next;
			__u8 hops;
			__u32 src[4];
			__u32 dst[4];
		} ip = {bpf_htonl(6u << 28), bpf_htons(length), protocol, 64, {}, {}};

		__builtin_memcpy(ip.src, p->key.dst, 16);
		__builtin_memcpy(ip.dst, p->key.src, 16);
		return store_bytes(skb, p->l3, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM) != 0;
	}
	struct {
		__u8 version;
		__u8 tos;
		__u16 length;
		__u16 id;
		__u16 offset;
		__u8 hops;
		__u8 protocol;
		__u16 check;
		__u32 src;
		__u32 dst;
	} ip = {0x45, tos, bpf_htons(20 + length), 0, bpf_htons(0x4000), 64, protocol, 0, p->key.dst[3], p->key.src[3]};

	ip.check = ~fold(csum_diff(0, 0, (__u32 *)&ip, sizeof(ip), 0));
	return store_bytes(skb, p->l3, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM) != 0;
}

/* Answers a packet of a connection that is not known here, so that whoever has sent it does not wait; but not every packet of a
 * flood. */
APART int reset(struct __sk_buff *skb, struct packet *p, __u64 now)
{
	__u32 length = p->is_v6 ? 40 : 20, at, sum;
	__u8 macs[12];
	struct {
		__u16 sport;
		__u16 dport;
		__u32 seq;
		__u32 ack;
		__u8 offset;
		__u8 flags;
		__u16 window;
		__u16 check;
		__u16 urgent;
	} tcp = {p->key.dport, p->key.sport, 0, 0, 5 << 4, TCP_RST, 0, 0, 0};

	/* The host answers what is in pieces or has options. */
	if (p->flags & TCP_RST || p->fragment != WHOLE || p->l4 != p->l3 + length)
		return PASS;
	if (p->refused && !may_send(BUDGET_REFUSALS, REFUSALS_TOLD_MAX, now))
		return DROP;
	if (!p->refused && !may_send(BUDGET_RESETS, RESETS_MAX, now))
		return drop(DROP_STRAY_FLOOD);
	/* RFC 9293, 3.10.7.1. */
	if (p->flags & TCP_ACK) {
		tcp.seq = bpf_htonl(p->ack);
	} else {
		tcp.flags |= TCP_ACK;
		tcp.ack = bpf_htonl(p->seq + p->payload + (p->flags & TCP_SYN ? 1 : 0) + (p->flags & TCP_FIN ? 1 : 0));
	}
	at = p->l3 + length;
	if (change_tail(skb, at + 20, 0) || load_bytes(skb, 0, macs, 12))
		return drop(DROP_MALFORMED);
	if (turn_back(skb, p, macs, IPPROTO_TCP, 0, sizeof(tcp)))
		return drop(DROP_MALFORMED);
	if (store_bytes(skb, at, &tcp, sizeof(tcp), BPF_F_RECOMPUTE_CSUM))
		return drop(DROP_MALFORMED);
	/* From nothing: right whether the sum is kept complete or left to the way out. */
	{
		__u32 rest[2] = {bpf_htonl(20), bpf_htonl(IPPROTO_TCP)};

		/* What an IPv4 address has before it, 0xffff, is nothing to a sum. */
		sum = csum_diff(0, 0, p->key.src, 32, 0);
		sum = csum_diff(0, 0, rest, 8, sum);
		if (replace_pseudo(skb, at + 16, sum, 0, p->is_v6))
			return drop(DROP_MALFORMED);
		sum = csum_diff(0, 0, (__u32 *)&tcp, sizeof(tcp), 0);
		if (l4_csum_replace(skb, at + 16, 0, sum, 0))
			return drop(DROP_MALFORMED);
		csum_update(skb, ~sum);
	}
	if (!p->refused)
		count_drop(DROP_STRAY);
	return redirect(skb->ifindex, 0);
}

INLINE __u64 new_id(__u64 now)
{
	/* Apart from those of the workers, and exact in a double. */
	return 1ull << 52 | ((now << 6 | (cpu() & 63)) & ((1ull << 52) - 1));
}

/* Counts whoever is turned away, and tells of clients of TCP, of so many that a flood does not crowd out ends. */
APART int note_refusal(struct packet *p, __u32 listener, __u32 why, __u64 now)
{
	struct tally *tally = map_lookup(&listener_tallies, &listener);
	struct ended *ended;

	if (tally && why < REFUSALS)
		tally->refused[why]++;
	if (p->key.protocol != IPPROTO_TCP || !may_send(BUDGET_RECORDS, RECORDS_MAX, now))
		return 0;
	ended = ringbuf_reserve(&events, sizeof(*ended), 0);
	if (!ended) {
		count_drop(DROP_UNTOLD);
		return 0;
	}
	__builtin_memset(ended, 0, sizeof(*ended));
	ended->key = p->key;
	ended->up.id = new_id(now);
	ended->up.opened = ended->up.last = ended->at = now;
	ended->up.listener = listener;
	ended->end = END_REFUSALS + why;
	ringbuf_submit(ended, 0);
	return 0;
}

/* Turns a client away: by RST, so that nobody waits; datagrams vanish. */
APART int turn_away(struct __sk_buff *skb, struct packet *p, __u32 listener, __u32 why, __u64 now)
{
	int taken;

	/* What a backend says is not answered in its client's place. */
	if (p->entrance >= ANSWERS)
		return drop(DROP_REFUSED);
	note_refusal(p, listener, why, now);
	count_drop(why == REFUSED_LISTENER ? DROP_FULL : DROP_REFUSED);
	if (p->key.protocol != IPPROTO_TCP)
		return DROP;
	p->refused = 1;
	taken = reset(skb, p, now);
	/* Nothing of it is the host's affair: who else listens there is not what the client has asked for. */
	return taken == PASS ? DROP : taken;
}

/* ---- timestamps (RFC 7323, 3.2) ---- */

#define OPTION_TIMESTAMPS 8
#define TIMESTAMPS_LENGTH 10
/* Where options begin, after two that do nothing: the layout that RFC 7323 recommends. */
#define TIMESTAMPS_USUAL 0x0101080au

struct timestamps {
	__u32 value;
	__u32 echo;
};

/* Finds a segment's timestamps among its options: where they are, from the start of the frame; 0 = it has none. */
APART __u32 find_timestamps(struct __sk_buff *skb, struct packet *p)
{
	__u32 at = p->l4 + 20, end = p->l4 + p->header;

	for (int i = 0; i < OPTIONS; i++) {
		struct {
			__u8 kind;
			__u8 length;
		} option;

		if (at + TIMESTAMPS_LENGTH > end || load_bytes(skb, at, &option, sizeof(option)) || option.kind == 0)
			break;
		if (option.kind == OPTION_TIMESTAMPS)
			return option.length == TIMESTAMPS_LENGTH ? at + 2 : 0;
		if (option.kind == 1) {
			at++;
			continue;
		}
		if (option.length < 2)
			break;
		at += option.length;
	}
	return 0;
}

INLINE __u32 turn_bytes(__u32 n)
{
	return n >> 8 | n << 24;
}

/* What a new client's timestamps are behind. */
INLINE __u32 measure_behind(struct __sk_buff *skb, struct packet *p, __u64 now)
{
	struct timestamps its;
	__u32 at = find_timestamps(skb, p);

	if (!at || load_bytes(skb, at, &its, sizeof(its)))
		return 0;
	return (__u32)(now / 1000000) - bpf_htonl(its.value);
}

/* Moves a segment's timestamps from one clock to the other. */
INLINE long move_timestamps(struct __sk_buff *skb, struct packet *p, const struct flow *flow)
{
	struct {
		__u32 first;
		struct timestamps its;
	} usual;
	__u32 at = p->l4 + 24, old, new;

	if (p->header < 20 + TIMESTAMPS_LENGTH)
		return 0;
	if (p->header < 32 || load_bytes(skb, p->l4 + 20, &usual, sizeof(usual)) || usual.first != bpf_htonl(TIMESTAMPS_USUAL)) {
		at = find_timestamps(skb, p);
		if (!at || load_bytes(skb, at, &usual.its, sizeof(usual.its)))
			return 0;
	}
	if (flow->flags & FLOW_CLIENT) {
		old = usual.its.value;
		new = bpf_htonl(bpf_htonl(old) + flow->behind);
	} else {
		/* Without ACK there is no echo. */
		if (!(p->flags & TCP_ACK))
			return 0;
		old = usual.its.echo;
		new = bpf_htonl(bpf_htonl(old) - flow->behind);
		at += 4;
	}
	if (store_bytes(skb, at, &new, 4, 0))
		return 1;
	/* From an odd place on, the bytes of each word count for one another. */
	if ((at - p->l4) & 1) {
		old = turn_bytes(old);
		new = turn_bytes(new);
	}
	return l4_csum_replace(skb, p->l4 + 16, old, new, 4);
}

/* Opens a flow for a packet without one, or lets it join one; `came` is its key as it came. 0: entries are there. */
APART int open(struct __sk_buff *skb, struct packet *p, __u64 now, struct tuple *came)
{
	__u32 zero = 0, one = 1, ix, chosen, from, why;
	struct state *in_force = map_lookup(&state, &zero);
	struct flow *up = map_lookup(&scratch, &zero), *down = map_lookup(&scratch, &one);
	struct service_key wanted = {};
	struct service *service;
	struct listener *listener;
	struct backend *backend;
	struct pool *pool;
	struct tuple other;

	if (!in_force || !up || !down)
		return PASS;
	wanted.port = p->key.dport;
	wanted.protocol = p->key.protocol;
	wanted.bank = in_force->bank & 1;
	__builtin_memcpy(wanted.address, p->key.dst, 16);
	service = map_lookup(&services, &wanted);
	if (!service || service->kind != SERVICE_CLIENTS || in_force->closed)
		return PASS;
	ix = service->listener;
	listener = map_lookup(&listeners, &ix);
	ix = service->pool;
	pool = map_lookup(&pools, &ix);
	if (!listener || !pool)
		return PASS;
	if (p->entrance != OPENS) {
		if (pool->balance != BALANCE_HASH || pool->mode == MODE_NAT)
			return reset(skb, p, now);
	}
	why = judge(p, service, listener, now);
	if (why)
		return turn_away(skb, p, service->listener, why - 1, now);
	chosen = choose(pool, p, now);
	if (!chosen && p->entrance == JOINS)
		return reset(skb, p, now);
	if (!chosen) {
		if (p->entrance == OPENS) {
			count_drop(DROP_NO_BACKEND);
			note_refusal(p, service->listener, p->full ? REFUSED_FULL : REFUSED_NO_BACKEND, now);
		}
		return PASS;
	}
	chosen--;
	backend = map_lookup(&backends, &chosen);
	if (!backend)
		return PASS;
	if (p->entrance >= ANSWERS) {
		/* Somebody whom the backend serves past the table. */
		if (!is_same(backend->address, came->src) || (backend->port && backend->port != came->sport))
			return PASS;
		/* The client's next packet tells. */
		if (p->entrance == ANSWERS_MANY)
			return drop(DROP_STRAY_FLOOD);
	}
	/* Before anything is kept of it. */
	if (is_undeliverable(p))
		return DROP;
	/* Members come and go; one of another family cannot be spoken to. */
	if (p->is_v6 == is_v4(backend->address)) {
		count_drop(DROP_NO_BACKEND);
		if (p->entrance == OPENS)
			note_refusal(p, service->listener, REFUSED_NO_BACKEND, now);
		return PASS;
	}

	__builtin_memset(up, 0, sizeof(*up));
	up->to.protocol = p->key.protocol;
	__builtin_memcpy(up->to.dst, backend->address, 16);
	up->to.dport = backend->port ? backend->port : p->key.dport;
	__builtin_memcpy(up->to.src, pool->mode == MODE_NAT ? backend->source : p->key.src, 16);
	up->to.sport = p->key.sport;
	up->id = new_id(now);
	up->opened = up->last = now;
	up->listener = service->listener;
	up->backend = chosen;
	up->flags = FLOW_CLIENT | p->guarded;
	if (p->entrance != OPENS && p->key.protocol == IPPROTO_TCP)
		up->flags |= FLOW_JOINED;
	if (pool->mode == MODE_DSR) {
		up->flags |= FLOW_DSR;
		__builtin_memcpy(up->to.dst, p->key.dst, 16);
		up->to.dport = p->key.dport;
	}
	if (pool->mode != MODE_DSR) {
		__builtin_memset(down, 0, sizeof(*down));
		turn_round(&down->to, &p->key);
		down->id = up->id;
		down->opened = down->last = now;
		down->listener = up->listener;
		down->backend = chosen;
		/* Whatever it says, it does not answer the beginning. */
		down->first_byte_us = p->entrance != OPENS;
		from = skb->ifindex;
		/* Or the compiler makes one load of two, by an address that the verifier does not take. */
		asm volatile("" : "+r"(from));
		if (p->entrance >= ANSWERS)
			from = service->ifindex;
		if (pool->mode == MODE_NAT && p->key.protocol == IPPROTO_TCP)
			up->behind = down->behind = measure_behind(skb, p, now);
		find_way(skb, down, from, now / 1000000000ull);
		/* Then the client's packet tells where it is. */
		if (!down->ifindex)
			return DROP;
		turn_round(&other, &up->to);
		if (pool->mode == MODE_KEEP) {
			/* The client's own address: this can only be its own flow, of an earlier time or another service. */
			if (map_update(&half, &other, down, BPF_ANY))
				return drop(DROP_PORTS);
		} else {
			if (take_source(pool, p, &other, down, now)) {
				count_drop(DROP_PORTS);
				note_refusal(p, up->listener, REFUSED_PROCESS, now);
				return PASS;
			}
			__builtin_memcpy(up->to.src, other.dst, 16);
			up->to.sport = other.dport;
		}
	}
	find_way(skb, up, backend->ifindex, now / 1000000000ull);
	if (map_update(&half, &p->key, up, BPF_ANY))
		return drop(DROP_FLOWS);
	if (p->key.protocol == IPPROTO_UDP)
		count_opened(up);
	return 0;
}

/* ---- rewriting ---- */

/* Addresses of the IP header, and one hop less. What the addresses changed by goes into `difference`. */
INLINE long rewrite_ip(struct __sk_buff *skb, const struct packet *p, const __u32 *src, const __u32 *dst,
		       __u32 *difference)
{
	if (p->is_v6) {
		struct {
			__u8 hops;
			__u8 addresses[32];
		} __attribute__((packed)) new;
		__u32 both[8];

		__builtin_memcpy(both, src, 16);
		__builtin_memcpy(both + 4, dst, 16);
		/* `key` begins with both addresses. */
		*difference = csum_diff(&p->key, 32, both, 32, 0);
		new.hops = p->hops - 1;
		__builtin_memcpy(new.addresses, both, 32);
		return store_bytes(skb, p->l3 + 7, &new, sizeof(new), 0);
	}
	struct {
		__u8 hops;
		__u8 protocol;
		__u16 check;
		__u32 src;
		__u32 dst;
	} new = {p->hops - 1, p->key.protocol, p->check, src[3], dst[3]};
	__u32 old[2] = {p->key.src[3], p->key.dst[3]};

	*difference = csum_diff(old, 8, &new.src, 8, 0);
	/* One less in the first byte of a word: in network order, 0x0100 less. */
	new.check = patch(patch(p->check, *difference), (__u16)~bpf_htons(0x0100));
	return store_bytes(skb, p->l3 + 8, &new, sizeof(new), 0);
}

INLINE int rewrite(struct __sk_buff *skb, const struct packet *p, const struct tuple *to)
{
	__u32 difference, at;
	__u64 flags = 0;

	if (rewrite_ip(skb, p, to->src, to->dst, &difference))
		return drop(DROP_MALFORMED);
	if (p->fragment == LATER)
		return 0;
	if (p->key.protocol == IPPROTO_UDP) {
		at = p->l4 + 6;
		/* No checksum stays none. */
		flags = BPF_F_MARK_MANGLED_0;
	} else {
		at = p->l4 + 16;
	}
	{
		__u32 old = p->key.sport | (__u32)p->key.dport << 16;
		__u32 new = to->sport | (__u32)to->dport << 16;

		if (difference && replace_pseudo(skb, at, difference, flags, p->is_v6))
			return drop(DROP_MALFORMED);
		if (old != new && (l4_csum_replace(skb, at, old, new, flags | 4) ||
				   store_bytes(skb, p->l4, &new, 4, 0)))
			return drop(DROP_MALFORMED);
	}
	return 0;
}

/* A SYN may not promise segments that do not fit through both sides of this host. */
APART int clamp_mss(struct __sk_buff *skb, struct packet *p, __u32 ifindex)
{
	__u32 mtu_in = 0, mtu_out = 0, most, at, end;

	check_mtu(skb, skb->ifindex, &mtu_in, 0, 0);
	check_mtu(skb, ifindex, &mtu_out, 0, 0);
	most = mtu_in < mtu_out ? mtu_in : mtu_out;
	most = most > 100 ? most - (p->is_v6 ? 60 : 40) : 0;
	if (!most)
		return 0;
	at = p->l4 + 20;
	end = skb->len - p->payload;
	for (int i = 0; i < OPTIONS; i++) {
		struct {
			__u8 kind;
			__u8 length;
			__u16 mss;
		} option = {};

		if (at + 4 > end || load_bytes(skb, at, &option, 4))
			break;
		if (option.kind == 0)
			break;
		if (option.kind == 1) {
			at++;
			continue;
		}
		if (option.kind == 2 && option.length == 4) {
			__u16 mss = bpf_htons(most);
			if (bpf_htons(option.mss) > most && !((at - p->l4) & 1)) {
				l4_csum_replace(skb, p->l4 + 16, option.mss, mss, 2);
				store_bytes(skb, at + 2, &mss, 2, 0);
			}
			break;
		}
		if (option.length < 2)
			break;
		at += option.length;
	}
	return 0;
}

INLINE int leave(const struct flow *flow)
{
	struct bpf_redir_neigh hop = {};

	if (!(flow->flags & FLOW_HOP))
		return redirect_neigh(flow->ifindex, 0, 0, 0);
	hop.nh_family = flow->hop_family;
	__builtin_memcpy(hop.ipv6_nh, flow->hop, 16);
	return redirect_neigh(flow->ifindex, &hop, sizeof(hop), 0);
}

/* ---- errors about what was passed on ---- */

/* An ICMP error about a packet that left here belongs to whoever sent that packet first. */
APART int error(struct __sk_buff *skb, struct packet *p, __u64 now)
{
	struct packet inner;
	struct tuple key;
	struct flow *flow;
	__u32 at, difference, embedded, ports_old, ports_new;
	__u8 type;

	if (load_bytes(skb, p->l4, &type, 1))
		return PASS;
	__builtin_memset(&inner, 0, sizeof(inner));
	at = p->l4 + 8;
	inner.l3 = at;
	if (!p->is_v6) {
		struct {
			__u8 version;
			__u8 rest[7];
			__u8 hops;
			__u8 protocol;
			__u16 check;
			__u32 src;
			__u32 dst;
		} ip;

		/* Unreachable, time exceeded, parameter problem. */
		if (type != 3 && type != 11 && type != 12)
			return PASS;
		if (load_bytes(skb, at, &ip, sizeof(ip)) || (ip.version & 15) < 5)
			return PASS;
		inner.key.src[2] = inner.key.dst[2] = bpf_htonl(0xffff);
		inner.key.src[3] = ip.src;
		inner.key.dst[3] = ip.dst;
		inner.key.protocol = ip.protocol;
		inner.check = ip.check;
		at += (ip.version & 15) * 4;
	} else {
		struct {
			__u8 rest[6];
			__u8 next;
			__u8 hops;
			__u32 src[4];
			__u32 dst[4];
		} ip;

		/* Unreachable, too big, time exceeded, parameter problem. */
		if (type < 1 || type > 4)
			return PASS;
		if (load_bytes(skb, at, &ip, sizeof(ip)))
			return PASS;
		inner.is_v6 = 1;
		__builtin_memcpy(inner.key.src, ip.src, 16);
		__builtin_memcpy(inner.key.dst, ip.dst, 16);
		inner.key.protocol = ip.next;
		at += 40;
	}
	if (inner.key.protocol != IPPROTO_TCP && inner.key.protocol != IPPROTO_UDP)
		return PASS;
	if (load_bytes(skb, at, &inner.key.sport, 4))
		return PASS;
	turn_round(&key, &inner.key);
	flow = find(&key);
	if (!flow)
		return PASS;
	if (p->hops <= 1)
		return drop(DROP_TTL);
	/* Outside, it comes from where that side believes to send to; inside stands what that side has sent. */
	if (rewrite_ip(skb, p, flow->to.src, flow->to.dst, &difference))
		return drop(DROP_MALFORMED);
	if (p->is_v6 && replace_pseudo(skb, p->l4 + 2, difference, 0, 1))
		return drop(DROP_MALFORMED);
	ports_old = inner.key.sport | (__u32)inner.key.dport << 16;
	ports_new = flow->to.dport | (__u32)flow->to.sport << 16;
	if (inner.is_v6) {
		__u32 both[8];

		__builtin_memcpy(both, flow->to.dst, 16);
		__builtin_memcpy(both + 4, flow->to.src, 16);
		embedded = csum_diff(&inner.key, 32, both, 32, 0);
		if (store_bytes(skb, inner.l3 + 8, both, 32, 0) ||
		    l4_csum_replace(skb, p->l4 + 2, 0, embedded, 0))
			return drop(DROP_MALFORMED);
	} else {
		__u32 old[2] = {inner.key.src[3], inner.key.dst[3]};
		__u32 new[2] = {flow->to.dst[3], flow->to.src[3]};
		__u16 check;

		/* What the addresses change in the sum over the whole, the header's own sum takes back. */
		embedded = csum_diff(old, 8, new, 8, 0);
		check = patch(inner.check, embedded);
		if (store_bytes(skb, inner.l3 + 12, new, 8, 0) || store_bytes(skb, inner.l3 + 10, &check, 2, 0))
			return drop(DROP_MALFORMED);
	}
	if (store_bytes(skb, at, &ports_new, 4, 0) ||
	    l4_csum_replace(skb, p->l4 + 2, ports_old, ports_new, 4))
		return drop(DROP_MALFORMED);
	flow->last = now;
	return leave(flow);
}

/* An injected packet that stays as it is. */
APART int plainly(struct __sk_buff *skb, struct packet *p, __u64 now)
{
	__u32 zero = 0;
	struct flow *way = map_lookup(&scratch, &zero);

	if (!way)
		return DROP;
	__builtin_memset(way, 0, sizeof(*way));
	way->to = p->key;
	find_way(skb, way, skb->ifindex, now / 1000000000ull);
	return leave(way);
}

/* Whether a packet's checksum is still to be computed on its way out, as it comes from a host on this machine; `at` is the
 * checksum's place, where `sum` is left standing. A difference without addresses is nothing to such a sum. */
INLINE int is_partial(struct __sk_buff *skb, __u32 at, __u16 *sum)
{
	__u16 after = 0;

	if (load_bytes(skb, at, sum, 2) || l4_csum_replace(skb, at, 0, 1, 2) || load_bytes(skb, at, &after, 2))
		return 0;
	if (after == *sum)
		return 1;
	store_bytes(skb, at, sum, 2, 0);
	return 0;
}

/* Tells whoever sent a packet that it is larger than the way out takes, and how large one may be: RFC 1191, RFC 8201. The
 * packet itself is what is sent back, its beginning behind two new headers. */
APART int too_big(struct __sk_buff *skb, struct packet *p, __u32 mtu, __u64 now)
{
	__u32 header = p->is_v6 ? 40 : 20, sum;
	__u8 macs[12], quoted[QUOTED];
	__u16 left = 0;
	int partial;
	/* "Packet too big"; "fragmentation needed", whose last half is a word of its own. */
	struct {
		__u8 type;
		__u8 code;
		__u16 check;
		__u32 mtu;
	} icmp = {p->is_v6 ? 2 : 3, p->is_v6 ? 0 : 4, 0, bpf_htonl(p->is_v6 ? mtu : (__u16)mtu)};

	/* Of more headers than these there is no telling what a sum covers. */
	if (skb->len < p->l3 + QUOTED || p->l4 != p->l3 + header || (p->is_v6 && mtu < 1280))
		return drop(DROP_TOO_BIG);
	if (!may_send(BUDGET_TOO_BIGS, TOO_BIGS_MAX, now))
		return drop(DROP_TOO_BIG);
	partial = is_partial(skb, p->l4 + (p->key.protocol == IPPROTO_UDP ? 6 : 16), &left);
	if (load_bytes(skb, p->l3, quoted, QUOTED) || load_bytes(skb, 0, macs, 12) ||
	    change_tail(skb, p->l3 + QUOTED, 0) || adjust_room(skb, header + sizeof(icmp), BPF_ADJ_ROOM_MAC, 0))
		return drop(DROP_MALFORMED);
	/* A sum that the way out completes makes everything from the transport header on sum up to the opposite of what stands for it
	 * now, whatever that is; the header before it, over IPv4, sums up to nothing. */
	if (!partial)
		sum = csum_diff(0, 0, (__u32 *)quoted, QUOTED, 0);
	else
		sum = csum_diff(0, 0, (__u32 *)quoted, header, (__u16)~left);
	if (turn_back(skb, p, macs, p->is_v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP, 0xc0, sizeof(icmp) + QUOTED))
		return drop(DROP_MALFORMED);
	if (p->is_v6) {
		__u32 rest[2] = {bpf_htonl(sizeof(icmp) + QUOTED), bpf_htonl(IPPROTO_ICMPV6)};

		sum = csum_diff(0, 0, p->key.src, 32, sum);
		sum = csum_diff(0, 0, rest, 8, sum);
	}
	icmp.check = ~fold(csum_diff(0, 0, (__u32 *)&icmp, sizeof(icmp), sum));
	if (store_bytes(skb, p->l3 + header, &icmp, sizeof(icmp), BPF_F_RECOMPUTE_CSUM))
		return drop(DROP_MALFORMED);
	count_drop(DROP_TOO_BIG);
	return redirect(skb->ifindex, 0);
}

/* Payload that has not been seen before: what is sent again counts once. */
INLINE __u32 fresh(struct flow *flow, const struct packet *p)
{
	__u32 end = p->seq + p->payload + (p->flags & TCP_SYN ? 1 : 0), start = p->seq + (p->flags & TCP_SYN ? 1 : 0);
	__s32 ahead;

	if (p->flags & TCP_ACK)
		flow->ack = p->ack;
	if (!flow->packets)
		flow->next = start;
	ahead = end - flow->next;
	/* Further ahead than any window: a reset's number may be anything. */
	if (ahead < 0 || ahead > 1 << 30 || p->flags & TCP_RST)
		return 0;
	/* A FIN takes a number, too. */
	flow->next = end + (p->flags & TCP_FIN ? 1 : 0);
	return ahead;
}

/* An RST of our own is made from what had passed when somebody looked. A number that is out of date would be ignored: what has passed
 * since then counts, and nothing passes from here on. */
APART int update(struct __sk_buff *skb, struct packet *p, struct flow *flow)
{
	__u32 old = bpf_htonl(p->seq), new;

	if (__sync_fetch_and_or(&flow->flags, FLOW_CUT) & FLOW_CUT || !flow->packets)
		return 0;
	p->seq = flow->next;
	new = bpf_htonl(p->seq);
	return store_bytes(skb, p->l4 + 4, &new, 4, 0) || l4_csum_replace(skb, p->l4 + 16, old, new, 4);
}

/* ---- the whole ---- */

/* A fragment's place: whose it is, without ports. */
INLINE void fragment_key(struct tuple *key, const struct packet *p)
{
	*key = p->key;
	key->sport = p->fragment_id;
	key->dport = p->fragment_id >> 16;
}

INLINE int later_fragment(struct __sk_buff *skb, struct packet *p)
{
	struct tuple key;
	struct flow *flow;

	fragment_key(&key, p);
	flow = map_lookup(&fragments, &key);
	if (!flow)
		return PASS;
	if (p->hops <= 1)
		return drop(DROP_TTL);
	if (rewrite(skb, p, &flow->to))
		return DROP;
	count_bytes(flow, 1, p->payload, flow->flags & FLOW_CLIENT);
	return leave(flow);
}

SEC("classifier/ingress")
int ingress(struct __sk_buff *skb)
{
	__u32 zero = 0;
	/* Not on the stack, where the verifier would follow each value that it can have. */
	struct packet *p = map_lookup(&packets, &zero);
	struct flow *flow, *other_flow;
	struct tuple other;
	__u64 now, packets;
	__u32 up, mtu = 0, bytes;
	int verdict;

	if (!p)
		return PASS;
	/* 0: for this host. Tagged frames come again, through their own interface. */
	if (skb->pkt_type != 0 || skb->vlan_present)
		return PASS;
	if (!parse(skb, p))
		return PASS;
	now = ktime_ns();
	if (skb->mark > INJECT_MARK && skb->mark <= INJECT_MARK + INJECT_PLAIN) {
		p->injected = skb->mark - INJECT_MARK;
		skb->mark = 0;
		if (p->injected == INJECT_PLAIN)
			return plainly(skb, p, now);
	}
	if (p->fragment == LATER)
		return later_fragment(skb, p);
	if (p->key.protocol != IPPROTO_TCP && p->key.protocol != IPPROTO_UDP)
		return p->fragment == WHOLE ? error(skb, p, now) : PASS;

	flow = find(&p->key);
	if (flow && (p->flags & (TCP_SYN | TCP_ACK)) == TCP_SYN && flow->flags & FLOW_CLIENT) {
		__u32 ix = flow->backend;
		struct backend *backend = map_lookup(&backends, &ix);

		turn_round(&other, &flow->to);
		/* After an end the client may use its port again. Before the first answer, the backend may have been found down. */
		if (flow->flags & FLOW_ENDED ||
		    (!(flow->flags & (FLOW_ANSWERED | FLOW_DSR)) &&
		     (!backend || !backend->ready || !map_lookup(&half, &other)))) {
			forget(&p->key, &other);
			flow = 0;
		}
	}
	/* Its flow has ended meanwhile, or is another program's: that of a process before or after this one. */
	if (p->injected && !flow) {
		skb->mark = INJECT_MARK + p->injected;
		return PASS;
	}
	if (flow && flow->flags & FLOW_CUT && !(p->flags & TCP_RST)) {
		int taken = reset(skb, p, now);
		return taken == PASS ? DROP : taken;
	}
	if (!flow) {
		int taken;

		if (p->key.protocol == IPPROTO_TCP && (p->flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) != TCP_SYN)
			p->entrance = JOINS;
		other = p->key;
		if (turn_to_client(p))
			return PASS;
		taken = open(skb, p, now, &other);
		if (taken)
			return taken;
		p->key = other;
		flow = map_lookup(&half, &p->key);
		if (!flow)
			return PASS;
	}
	if (is_undeliverable(p))
		return DROP;
	if (p->injected && update(skb, p, flow))
		return drop(DROP_MALFORMED);
	if (settles(flow, p)) {
		__u32 listener = flow->listener;
		int why = settle(&p->key, now);

		if (why)
			return turn_away(skb, p, listener, why - 1, now);
		/* It may have moved. */
		flow = find(&p->key);
		if (!flow)
			return DROP;
	}
	if (now / 1000000000ull > (__u64)flow->routed + ROUTE_SECONDS)
		find_way(skb, flow, flow->ifindex, now / 1000000000ull);
	/* Of a merged packet, the segments that it will become. */
	if (check_mtu(skb, flow->ifindex, &mtu, 0, BPF_MTU_CHK_SEGS) > 0)
		return too_big(skb, p, mtu, now);
	if (p->key.protocol == IPPROTO_TCP && p->flags & TCP_SYN)
		clamp_mss(skb, p, flow->ifindex);
	if (flow->behind && move_timestamps(skb, p, flow))
		return drop(DROP_MALFORMED);
	if (rewrite(skb, p, &flow->to))
		return DROP;
	if (p->fragment == FIRST) {
		fragment_key(&other, p);
		map_update(&fragments, &other, flow, BPF_ANY);
	}

	up = flow->flags & FLOW_CLIENT;
	packets = skb->gso_segs ? skb->gso_segs : 1;
	flow->last = now;
	bytes = p->key.protocol == IPPROTO_TCP ? fresh(flow, p) : p->payload;
	__sync_fetch_and_add(&flow->packets, packets);
	__sync_fetch_and_add(&flow->bytes, bytes);
	if (!up && !flow->first_byte_us && (bytes || p->key.protocol == IPPROTO_UDP)) {
		flow->first_byte_us = (now - flow->opened) / 1000 + 1;
		learn(flow, now);
	}
	count_bytes(flow, packets, bytes, up);

	verdict = leave(flow);
	turn_round(&other, &flow->to);
	if (!up && !(flow->flags & FLOW_ANSWERED)) {
		__sync_fetch_and_or(&flow->flags, FLOW_ANSWERED);
		other_flow = find(&other);
		if (other_flow && !(p->flags & TCP_RST)) {
			if (!(other_flow->flags & FLOW_JOINED))
				other_flow->connect_us = (now - other_flow->opened) / 1000 + 1;
			__sync_fetch_and_or(&other_flow->flags, FLOW_ANSWERED);
		}
	}
	if (p->key.protocol == IPPROTO_UDP)
		return verdict;
	if (p->flags & (TCP_RST | TCP_FIN)) {
		__u32 how = END_FINISHED;
		struct flow *client = up ? flow : find(&other), *down = up ? find(&other) : flow;

		__sync_fetch_and_or(&flow->flags, FLOW_FIN);
		if (p->injected) {
			how = END_CUT;
			if (client)
				__sync_fetch_and_or(&client->flags, FLOW_CUT);
			if (down)
				__sync_fetch_and_or(&down->flags, FLOW_CUT);
		} else if (p->flags & TCP_RST) {
			how = up ? END_CLIENT_RESET : END_BACKEND_RESET;
			if (!up && client && !(client->flags & FLOW_ANSWERED))
				how = END_REFUSED;
		} else if (!client || !down || !(client->flags & FLOW_FIN) || !(down->flags & FLOW_FIN)) {
			if (!up && client && !(client->flags & FLOW_FIN))
				__sync_fetch_and_or(&client->flags, FLOW_BACKEND_FIRST);
			/* Without a view of the other side, a FIN is the end as far as this side knows. */
			if (!client || !(client->flags & FLOW_DSR))
				return verdict;
		}
		if (client)
			end(up ? &p->key : &other, client, down, now, how);
		return verdict;
	}
	return verdict;
}

/* Has a frame of user space come in at an interface (BPF_PROG_TEST_RUN). */
SEC("classifier/inject")
int inject(struct __sk_buff *skb)
{
	struct injected where;

	if (load_bytes(skb, 6, &where, 6))
		return -1;
	skb->mark = INJECT_MARK + where.kind;
	return clone_redirect(skb, where.ifindex, BPF_F_INGRESS);
}

/* Some helpers are for GPL-compatible programs only. */
char dual_license[] SEC("license") = "Dual MIT/GPL";

/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * What the program in the kernel and the process that feeds it have in common: the shapes of their maps.
 * src/kernel/layout.rs is the same in Rust; a test holds them together. Addresses are 16 bytes in network order,
 * IPv4 as ::ffff:a.b.c.d; ports are in network order; times are nanoseconds of CLOCK_MONOTONIC.
 */
#ifndef WEIR_H
#define WEIR_H

#include <linux/types.h>

/* Who sends a packet to whom; as a key, the packet as it arrives. */
struct tuple {
	__u32 src[4];
	__u32 dst[4];
	__u16 sport;
	__u16 dport;
	__u8 protocol;
	__u8 pad[3];
};

/* Everything that changes with a snapshot lies in two banks; this says which one is in force. */
struct state {
	__u32 bank;
	/* Nothing new is taken. */
	__u32 closed;
	/* Bit of a bank: it has services of SERVICE_ANSWERS. */
	__u32 joins;
	__u32 pad;
};

struct service_key {
	__u32 address[4];
	__u16 port;
	__u8 protocol;
	__u8 bank;
};

/* What stands under a service_key. */
enum service_kind {
	/* An address that clients use. */
	SERVICE_CLIENTS,
	/* A backend's address and port, from where it answers clients of `address` and `port`. */
	SERVICE_ANSWERS,
	/* The same, of more than one address or port. */
	SERVICE_ANSWERS_MANY,
	/* An address of this host, under port and protocol 0. */
	SERVICE_HOST,
};

struct service {
	/* Index into `listeners`. */
	__u32 listener;
	/* Index into `pools`, the bank included. */
	__u32 pool;
	__u32 kind;
	__u16 port;
	__u16 pad;
	__u32 address[4];
	/* The interface that has the clients' address. */
	__u32 ifindex;
	/* Index into `guards`, the bank included, plus one; 0 = everybody may come as often as they like. */
	__u32 guard;
};

/* Who may use a service, and how much of it. */
struct guard {
	/* VERDICT_* of sources that `networks` does not name. */
	__u32 otherwise;
	/* Whether it names any. */
	__u32 listed;
	/* Live flows of one source; 0 = any number. */
	__u32 per_source;
	__u32 pad;
	/* New flows of one source, as a meter (GCRA): what one costs, and what a bucket holds, ns; 0 = any number. */
	__u64 cost;
	__u64 depth;
};

/* What a guard says of an address. */
#define VERDICT_DENIED 1u
#define VERDICT_EXEMPT 2u	/* from the limits of sources */

/* A network as a guard sees it; the longest one that has an address counts. */
struct network {
	/* Bits of what follows. */
	__u32 length;
	/* Index into `guards`, twice, plus one for IPv4. */
	__u32 guard;
	__u32 address[4];
};

/* An IPv4 address, or an IPv6 /64, at a listener. */
struct source {
	/* Identity of the listener. */
	__u64 listener;
	__u32 address[4];
};

/* Counts of live flows by source. A slot is 40 bits of a hash of the source, and a count; a source has its slot in one of two
 * buckets. 0 = free. */
#define BUCKET 8
#define COUNT_BITS 24
#define COUNT_MAX ((1u << COUNT_BITS) - 1)
struct bucket {
	__u64 slots[BUCKET];
};

/* The process as a whole; TCP, UDP. */
struct process {
	__u32 active[2];
	/* 0xffffffff = any number. */
	__u32 active_max[2];
	/* Of the hash of sources, so that nobody can aim at a bucket. */
	__u64 seed;
	/* How many, a power of two. */
	__u32 buckets;
	__u32 pad;
};

/* Why somebody was turned away. */
enum refusal {
	REFUSED_DENIED,
	REFUSED_LISTENER,
	REFUSED_SOURCE,
	REFUSED_RATE,
	REFUSED_PROCESS,
	REFUSED_NO_BACKEND,
	/* Those backends that could serve have as many as they may. */
	REFUSED_FULL,
	REFUSALS,
};

/* How a pool chooses. */
enum balance {
	/* The slot that the source's key names, past whoever does not take it. */
	BALANCE_HASH,
	/* Slot after slot. */
	BALANCE_TURN,
	/* Two slots by chance, the less loaded one. */
	BALANCE_CHANCE,
	/* The least loaded of all. */
	BALANCE_LEAST,
	/* The least of response time times load. */
	BALANCE_TIME,
};

enum mode {
	/* Backends see an address of this host. */
	MODE_NAT,
	/* Backends see the client and answer through this host. */
	MODE_KEEP,
	/* Backends have the service's address themselves and answer the client. */
	MODE_DSR,
};

/* Local addresses that a pool may state. */
#define SOURCES 8

struct pool {
	__u32 balance;
	__u32 mode;
	/* Its part of `table`. */
	__u32 table;
	__u32 length;
	/* The only backend that takes work, plus one; 0 if there are several. */
	__u32 only;
	/* Whether the source's port counts. */
	__u32 with_port;
	__u64 turn;
	/* Seeds of source_hash by family, and what counts of an address. */
	__u64 seed_v4;
	__u64 seed_v6;
	__u32 mask_v4;
	/* BALANCE_HASH: nobody has more than so many 1/65536ths of the mean; 0 = as many as come. */
	__u32 bound;
	__u32 mask_v6[4];
	/* Local addresses towards its backends (MODE_NAT), each with ports of its own; 0: each backend's `source`. */
	__u32 sources_count;
	__u32 pad2;
	__u32 sources[SOURCES][4];
};

/* A slot of a pool: who, and how much. */
struct slot {
	/* Index into `backends`. */
	__u32 backend;
	/* BALANCE_LEAST, BALANCE_TIME: weight; BALANCE_HASH: share in 1/1024, and behind the table weight; 0 = takes nothing. */
	__u32 weight;
};

struct listener {
	/* Of its name; 0 = nobody has this place. */
	__u64 identity;
	__u32 active;
	/* 0 = any number. */
	__u32 active_max;
};

struct backend {
	/* Of its pool and address; 0 = nobody has this place. */
	__u64 identity;
	__u32 address[4];
	/* Local address towards it (MODE_NAT). */
	__u32 source[4];
	/* 0 = the port that the client used. */
	__u16 port;
	__u16 pad;
	/* Way out, where the forwarding table cannot be asked. */
	__u32 ifindex;
	__u32 active;
	/* What the workers have there: told by user space, several times a second. */
	__u32 active_elsewhere;
	/* Of both together; 0 = any number. */
	__u32 active_max;
	/* Whether new work goes there. */
	__u32 ready;
	/* Without regard to slow start. */
	__u32 weight;
	__u32 pad2;
	/* Smoothed response time, and when it was last learned, nanoseconds; 0 = unknown. */
	__u64 latency;
	__u64 latency_at;
	/* The workers', as far as it still counts. */
	__u64 latency_elsewhere;
};

/* Local ports that mode nat uses. */
#define PORT_RANGES 8
struct ports {
	/* Of all ranges. */
	__u32 total;
	__u32 pad;
	struct {
		__u16 first;
		__u16 length;
	} ranges[PORT_RANGES];
};

/* Flags of a flow. */
#define FLOW_CLIENT 1u      /* from the client; the entry from the backend has the rest of the flags clear, but FLOW_FIN */
#define FLOW_ANSWERED 2u    /* the backend has answered */
#define FLOW_OPEN 4u        /* both sides have answered: counted, and beyond the reach of floods */
#define FLOW_ENDED 8u       /* told of */
#define FLOW_FIN 16u        /* this side has sent its FIN */
#define FLOW_DSR 32u        /* only the way to the backend is seen */
#define FLOW_HOP 64u        /* `hop` is known */
#define FLOW_JOINED 128u    /* its beginning was not seen here */
#define FLOW_CUT 256u       /* ended by us: whoever still sends is reset */
#define FLOW_BACKEND_FIRST 512u /* the backend has sent its FIN before the client */
#define FLOW_GUARDED 1024u  /* its service has a guard */
#define FLOW_SOURCED 2048u  /* counts as one of its source's */
#define FLOW_METERED 4096u  /* the meter of its source was asked */
#define FLOW_LET_IN 8192u   /* limits are asked no more */
#define FLOW_CLEARED 16384u /* its client has reset what the backend remembered */

/* One direction of a connection or session. */
struct flow {
	/* What the packet becomes. Turned round it is the key of the other direction. */
	struct tuple to;
	__u32 hop[4];
	__u64 id;
	__u64 packets;
	/* Payload, each byte once. */
	__u64 bytes;
	__u64 last;
	__u64 opened;
	__u32 ifindex;
	/* When the way was looked up, seconds. */
	__u32 routed;
	__u32 listener;
	__u32 backend;
	__u32 flags;
	/* From the first packet to the first answer. */
	__u32 connect_us;
	__u32 hop_family;
	/* TCP: what comes next from this side, and what it expects next. */
	__u32 next;
	__u32 ack;
	/* The backend's entry: from the client's first packet to the first byte of an answer. */
	__u32 first_byte_us;
	/* TCP, MODE_NAT: by how much the clock of the client's timestamps is behind that which backends see; 0 = they are left alone. */
	__u32 behind;
	__u32 pad;
};

/* Why a flow ended. */
enum end {
	END_FINISHED,
	END_CLIENT_RESET,
	END_BACKEND_RESET,
	/* The backend refused the connection. */
	END_REFUSED,
	/* By us. */
	END_CUT,
	/* Turned away: plus one of enum refusal. */
	END_REFUSALS,
};

/* An ended flow. */
struct ended {
	/* As the client sends. */
	struct tuple key;
	struct flow up;
	__u64 packets_down;
	__u64 bytes_down;
	__u64 at;
	__u32 end;
	/* Of the backend's entry. */
	__u32 first_byte_us;
};

/* Frames of our own (`inject`): an RST that ends the flow it belongs to. Their source address is where and how: */
struct injected {
	/* The interface that it comes from. */
	__u32 ifindex;
	__u16 kind;
};

enum inject_kind {
	/* Ends a flow: travels as if a side of it had sent it. */
	INJECT_CUT = 1,
	/* Leaves as it is: where answers are not seen, there is no flow that takes it to the client. */
	INJECT_PLAIN,
};

/* Of a listener or a backend, on one CPU. */
struct tally {
	__u64 opened;
	__u64 packets_up;
	__u64 bytes_up;
	__u64 packets_down;
	__u64 bytes_down;
	/* Of a listener: who was turned away, by enum refusal. */
	__u64 refused[REFUSALS];
};

/* A flow that user space is taking out of the table and out of what counts it: whoever comes after a process that was killed meanwhile
 * does the rest. */
struct removal {
	/* Its client's entry. */
	struct tuple key;
	__u64 id;
	__u32 listener;
	__u32 backend;
	__u32 flags;
	/* What is to be done next; 0 = there is none. */
	__u32 step;
};

/* What became of packets that were not passed on, or not as they should have been. */
enum drop {
	/* No backend: the host answers. */
	DROP_NO_BACKEND,
	/* The listener or the backends have as many as they may. */
	DROP_FULL,
	/* No port of this host was free. */
	DROP_PORTS,
	/* The flow table is full: the flow goes on where floods reach it. */
	DROP_FLOWS,
	DROP_TTL,
	DROP_MALFORMED,
	/* Larger than the way out takes; whoever sent it is told. */
	DROP_TOO_BIG,
	/* No room to tell of an end. */
	DROP_UNTOLD,
	/* Of a TCP connection that is not known here: answered by RST. */
	DROP_STRAY,
	/* The same, beyond what is answered in a second. */
	DROP_STRAY_FLOOD,
	/* The listener's guard or the process's limit is against it. */
	DROP_REFUSED,
	DROPS,
};

#endif

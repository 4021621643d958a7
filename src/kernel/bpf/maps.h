/* Tables that the process in user space shares, limits of the program, and what is known of a packet. */

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
MAP(removal, BPF_MAP_TYPE_ARRAY, __u32, struct removal, 1, BPF_F_MMAPABLE);
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
/* The same where there is a choice: so soon after it has told one client what it expects under a port instead of a SYN, a backend that
 * remembers something there does not tell the next (Linux: net.ipv4.tcp_invalid_ratelimit, 500 ms). */
#define HEARD_NS 550000000ull
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
	/* The last try of this client did not come about: not from its own port again. */
	__u16 elsewhere;
	__u32 seq;
	__u32 ack;
	/* Of its source (BALANCE_HASH). */
	__u64 source;
	/* What those have together who take work and have room, and their weight; 0 = that is not looked at. */
	__u64 mean_total;
	__u64 mean_weight;
};

MAP(packets, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct packet, 1, 0);

enum { PASS = TC_ACT_UNSPEC, DROP = TC_ACT_SHOT };

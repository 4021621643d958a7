/* TCP timestamps (RFC 7323, 3.2): in mode nat backends see one clock. */

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

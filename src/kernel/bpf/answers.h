/* Packets of our own: resets, and what those who are turned away hear. */

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
		struct ipv6_header ip = {bpf_htonl(6u << 28), bpf_htons(length), protocol, 64, {}, {}};

		__builtin_memcpy(ip.src, p->key.dst, 16);
		__builtin_memcpy(ip.dst, p->key.src, 16);
		return store_bytes(skb, p->l3, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM) != 0;
	}
	struct ipv4_header ip = {0x45, tos, bpf_htons(20 + length), 0, bpf_htons(0x4000), 64, protocol, 0, p->key.dst[3], p->key.src[3]};

	ip.check = ~fold(csum_diff(0, 0, (__u32 *)&ip, sizeof(ip), 0));
	return store_bytes(skb, p->l3, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM) != 0;
}

/* Answers a packet of a connection that is not known here, so that whoever has sent it does not wait; but not every packet of a
 * flood. */
APART int reset(struct __sk_buff *skb, struct packet *p, __u64 now)
{
	__u32 length = p->is_v6 ? 40 : 20, at, sum;
	__u8 macs[12];
	struct tcp_header tcp = {p->key.dport, p->key.sport, 0, 0, 5 << 4, TCP_RST, 0, 0, 0};

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

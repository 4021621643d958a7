/* ICMP errors: about packets that were passed on, and about those that are too big to be. */

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
		struct ipv4_header ip;

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
		struct ipv6_header ip;

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
	__u32 header = p->is_v6 ? 40 : 20, headers = p->l4 - p->l3, summed, sum;
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

	/* Whoever is told looks for the ports, and a sum that is still to be computed for its place. */
	if (skb->len < p->l3 + QUOTED || headers > QUOTED - 20 || (p->is_v6 && mtu < 1280))
		return drop(DROP_TOO_BIG);
	if (!may_send(BUDGET_TOO_BIGS, TOO_BIGS_MAX, now))
		return drop(DROP_TOO_BIG);
	partial = is_partial(skb, p->l4 + (p->key.protocol == IPPROTO_UDP ? 6 : 16), &left);
	if (load_bytes(skb, p->l3, quoted, QUOTED) || load_bytes(skb, 0, macs, 12) ||
	    change_tail(skb, p->l3 + QUOTED, 0) || adjust_room(skb, header + sizeof(icmp), BPF_ADJ_ROOM_MAC, 0))
		return drop(DROP_MALFORMED);
	/* A sum that the way out completes makes everything from the transport header on sum up to the opposite of what stands for it
	 * now, whatever that is. */
	summed = partial ? headers : QUOTED;
	/* The verifier has forgotten how much it is at most. */
	asm volatile("" : "+r"(summed));
	if (summed > QUOTED)
		return DROP;
	sum = csum_diff(0, 0, (__u32 *)quoted, summed, partial ? (__u16)~left : 0);
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

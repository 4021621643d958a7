/* A packet becomes what its flow says. */

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

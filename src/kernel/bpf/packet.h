/* What a packet is: its headers, and arithmetic of sums and comparisons. */

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

/* Headers as they are on the wire. */
struct ipv4_header {
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
};

struct ipv6_header {
	__u32 version;
	__u16 length;
	__u8 next;
	__u8 hops;
	__u32 src[4];
	__u32 dst[4];
};

struct tcp_header {
	__u16 sport;
	__u16 dport;
	__u32 seq;
	__u32 ack;
	__u8 offset;
	__u8 flags;
	__u16 window;
	__u16 check;
	__u16 urgent;
};

/* Reads addresses and ports. False: not for this program. */
APART int parse(struct __sk_buff *skb, struct packet *p)
{
	__u32 proto, at;

	__builtin_memset(p, 0, sizeof(*p));
	p->l3 = at = ETH_HLEN;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct ipv4_header ip;
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
		struct ipv6_header ip;

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
		struct tcp_header tcp;
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
	/* Or the compiler would make a branch of it, and of what is reckoned with it. */
	a -= b;
	asm volatile("" : "+r"(a));
	a >>= 63;
	asm volatile("" : "+r"(a));
	return a;
}

INLINE __u64 is_zero(__u64 a)
{
	return is_below(a, 1);
}

INLINE __u64 not_zero(__u64 a)
{
	return is_below(0, a);
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

/* A place in a ring, from one that is less than a round too far. */
INLINE __u32 wrap(__u64 at, __u32 length)
{
	return at - (length & (is_below(at, length) - 1));
}

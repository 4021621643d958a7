/* By which interface and neighbour, from which address and port a flow leaves; whose an answer without a flow is. */

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
INLINE __u32 nth_port(const volatile struct ports *usable, __u64 nth)
{
	__u64 port = 0, found = 0;

#pragma clang loop unroll(full)
	for (int i = 0; i < PORT_RANGES; i++) {
		__u64 length = usable->ranges[i].length, here = is_below(nth, length) & (found ^ 1);

		port = either(here, usable->ranges[i].first + nth, port);
		found |= here;
		nth -= length & (found - 1);
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
 * as many connections in the time that entries stay after their end as there are ports. So does what is not established and has been
 * quiet for so long, unless that is 0: or a flood, which half-opens all that there are, would leave none to others. */
APART int take_port(struct tuple *key, struct flow *down, __u64 now, __u64 quiet)
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
	} else if (quiet) {
		old = map_lookup(&half, key);
		if (old && now > old->last + quiet) {
			turn_round(&other, &old->to);
			up = map_lookup(&half, &other);
			if (up && up->id == old->id)
				map_delete(&half, &other);
			map_delete(&half, key);
		}
	}
	return map_update(&half, key, down, BPF_NOEXIST);
}

/* Which of a pool's own addresses is the first to be tried for a client. */
INLINE __u32 first_source(const struct pool *pool, const struct packet *p)
{
	__u64 high = (__u64)p->key.src[0] << 32 | p->key.src[1], low = (__u64)p->key.src[2] << 32 | p->key.src[3];

	return mix2(mix2(high, low), p->key.sport) % pool->sources_count;
}

/* Enters a flow's way back under an address and a port of this host's that are free, and says which in `key`. At each address the
 * client's own port is tried, unless its last try did not come about, and then others by chance; when all of these are taken, it is
 * the turn of the pool's next address. */
APART int take_source(struct pool *pool, struct packet *p, struct tuple *key, struct flow *down, __u64 now)
{
	/* Read each time: what the verifier has found out of it in one round would count in the others. */
	volatile __u32 *count = &pool->sources_count;
	__u32 zero = 0, own, tries;
	struct ports *usable = map_lookup(&ports, &zero);

	if (!usable || !usable->total)
		return 1;
	own = bpf_htons(p->key.sport) * is_usable(usable, bpf_htons(p->key.sport)) * is_zero(p->elsewhere);
	tries = either(is_below(1, *count), *count * SOURCE_TRIES, PORT_TRIES);
	for (__u32 i = 0; i < SOURCES * SOURCE_TRIES; i++) {
		__u32 total, port, nth, with_own;
		__u64 quiet;

		if (i >= tries)
			break;
		if (!(i % SOURCE_TRIES) && *count) {
			nth = (first_source(pool, p) + i / SOURCE_TRIES) % *count;
			__builtin_memcpy(key->dst, pool->sources[nth & (SOURCES - 1)], 16);
		}
		/* Each by itself: fixed steps would meet the runs of taken ports that they have made. */
		total = usable->total;
		port = nth_port(usable, prandom() % (total + is_zero(total)));
		with_own = is_zero(i % SOURCE_TRIES) & (is_zero(i) | is_below(1, *count)) & not_zero(own);
		key->dport = bpf_htons((__u16)either(with_own, own, port));
		/* A third of the tries each. */
		quiet = either(is_below(i * 3, tries * 2), HEARD_NS, DISPLACE_NS) & (is_below(i * 3, tries) - 1);
		if (!take_port(key, down, now, quiet))
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

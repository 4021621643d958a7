/* The beginning of a flow. */

/* Opens a flow for a packet without one, or lets it join one; `came` is its key as it came. 0: entries are there. */
APART int open(struct __sk_buff *skb, struct packet *p, __u64 now, struct tuple *came)
{
	__u32 zero = 0, one = 1, ix, chosen, from, why;
	struct flow *up = map_lookup(&scratch, &zero), *down = map_lookup(&scratch, &one);
	struct state *in_force = map_lookup(&state, &zero);
	struct service *service = service_of(&p->key);
	struct listener *listener;
	struct backend *backend;
	struct pool *pool;
	struct tuple other;

	if (!in_force || !up || !down)
		return PASS;
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

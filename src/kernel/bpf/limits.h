/* Who may begin a connection: access lists, rates and limits (src/kernel/guards.rs writes them). */

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

/* Looks a source up in both of its buckets; src/kernel/sources.rs has the same. */
APART int look_up(struct search *s)
{
	__u64 own = s->hash >> COUNT_BITS, slot = 0, live = 0;

	s->room[0] = s->room[1] = 0;
	for (int half = 0; half < 2; half++) {
		__u32 ix = s->buckets[half];
		struct bucket *bucket = map_lookup(&sources, &ix);
		__u64 room = 0, vacant = 0;

		if (!bucket)
			break;
		for (int i = 0; i < BUCKET; i++) {
			__u64 word = *(volatile __u64 *)&bucket->slots[i], is_free, is_own;

			is_free = is_zero(word >> COUNT_BITS | (word & COUNT_MAX));
			is_own = is_zero(word >> COUNT_BITS ^ own) & (is_free ^ 1);
			room += is_free;
			vacant = either(is_free, half * BUCKET + i, vacant);
			live += word & COUNT_MAX & -is_own;
			slot = either(is_own, half * BUCKET + i + 1, slot);
		}
		s->room[half] = room;
		s->vacant[half] = vacant;
	}
	s->slot = slot;
	s->live = live;
	return 0;
}

APART struct search *search_for(const struct listener *listener, const __u32 *address)
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
APART __u32 verdict_of(const struct guard *guard, __u32 place, const __u32 *address)
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
	struct service *service = service_of(key);
	struct guard *guard;
	struct source source;
	struct search *s;
	int is_new = !(up->flags & (FLOW_JOINED | FLOW_LET_IN));

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
